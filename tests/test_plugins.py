"""Plugins are named in the settings, get what they ask for, and every mistake is named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from nebengjek import app as application
from nebengjek import plugins
from nebengjek.clock import Clock, ManualClock
from nebengjek.contracts.rides import RideCompleted
from nebengjek.errors import Misconfigured
from nebengjek.module import Module, on
from nebengjek.plugins import inspect_plugin, load_plugins, resolve
from tests.flows.world import settings_for

HERE = f"{__name__}:thanks"
heard: list[str] = []


def thanks(clock: Clock, *, greeting: str = "terima kasih", times: int = 1) -> Module:
    """Says thank you after each ride."""

    async def say(event: RideCompleted) -> None:
        heard.append(f"{greeting} {times}")

    assert isinstance(clock, Clock)
    return Module(name="thanks", hears=[on(RideCompleted, say)])


def demanding(clock: Clock, *, key: str) -> Module:
    return Module(name="demanding")


class Table(Struct, frozen=True):
    times: int = 1


def misspelt(clok: Clock, settings: Table) -> Module:
    return Module(name="misspelt")


def twin() -> Module:
    return Module(name="thanks")


def anything(**values: Any) -> Module:
    return Module(name=f"anything-{sorted(values)}")


def wrong() -> str:
    return "no module"


NO_FACTORY = 3
PARTS = {"clock": ManualClock(), "bus": object()}


def load(*names: str, taken: tuple[str, ...] = (), **tables: dict[str, Any]) -> list[Module]:
    return load_plugins([f"{__name__}:{name}" for name in names], tables, PARTS, taken=taken)


async def test_a_plugin_is_made_with_its_table_and_what_it_asks_for() -> None:
    (module,) = load("thanks", thanks={"greeting": "makasih", "times": 2})
    assert module.name == "thanks"
    (hearing,) = module.hears
    heard.clear()
    await hearing.handler(None)
    assert heard == ["makasih 2"]


def test_plugins_come_in_the_order_of_the_settings() -> None:
    assert [module.name for module in load("anything", "thanks", anything={"a": 1})] == ["anything-['a']", "thanks"]


@pytest.mark.parametrize(
    ("names", "tables", "said"),
    [
        (["thanks"], {"thanks": {"greetin": "x"}}, "plugin.thanks.greetin: there is no such argument; did you mean"),
        (["thanks"], {"thanks": {"times": "many"}}, "plugin.thanks.times: Expected `int`, got `str`"),
        (["thanks"], {"thank": {}}, "plugin.thank: plugins names no plugin called thank; did you mean plugin.thanks?"),
        (["demanding"], {}, "plugin.demanding.key is not set"),
        (["misspelt"], {}, "plugins: misspelt asks for clok, which there is not; did you mean clock?"),
        (["wrong"], {}, "plugins: wrong makes no Module but str"),
        (["thanks", "twin"], {}, "makes a module thanks, but there is one of that name"),
        (["thanks", "thanks"], {}, "plugins: two have the same name"),
        (["nothing"], {}, "the module has no nothing"),
        (["NO_FACTORY"], {}, "is no factory but int"),
    ],
)
def test_mistakes_are_named(names: list[str], tables: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        load(*names, **tables)
    assert said in str(caught.value)


def test_a_plugin_cannot_take_the_name_of_a_module() -> None:
    with pytest.raises(Misconfigured, match="there is one of that name"):
        load("thanks", taken=("thanks",))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_package:x", "there is no module no_such_package"),
        ("nebengjek.module", "expected package.module:factory"),
        ("a:b:c", "expected package.module:factory"),
        (":x", "expected package.module:factory"),
        ("nebengjek.module:Modul", "the module has no Modul"),
    ],
)
def test_a_path_that_leads_nowhere(path: str, said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        resolve(path)
    assert said in str(caught.value)


def test_what_is_wrong_in_a_plugins_own_code_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistaken.py").write_text("import math\nmath.pie\n\ndef mistaken(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="pie"):
        resolve("mistaken:mistaken")


def test_what_a_plugin_takes_can_be_read_without_making_it() -> None:
    info = inspect_plugin(HERE, PARTS)
    assert (info.name, info.summary) == ("thanks", "Says thank you after each ride.")
    assert info.arguments == {"greeting": "'terima kasih'", "times": "1"}
    assert inspect_plugin(f"{__name__}:demanding", PARTS).arguments == {"key": "required"}


async def test_the_application_hands_out_the_parts_that_are_listed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is handed out and not listed would be shown as an argument that the settings may set."""
    handed: list[str] = []

    def load_and_note(
        paths: Sequence[str], tables: Mapping[str, Any], parts: Mapping[str, Any], *, taken: Sequence[str]
    ) -> list[Module]:
        handed.extend(parts)
        return load_plugins(paths, tables, parts, taken=taken)

    monkeypatch.setattr(application, "load_plugins", load_and_note)
    app = application.App(settings_for(f"sqlite:///{tmp_path / 'parts.sqlite3'}"), sweeping=False)
    await app.database.close()
    assert sorted(handed) == sorted(plugins.PARTS)


def test_the_page_of_plugins_names_every_part() -> None:
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
    section = page.partition("## What a factory may ask for")[2].partition("\n## ")[0]
    assert [part for part in plugins.PARTS if f"`{part}`" not in section] == []
