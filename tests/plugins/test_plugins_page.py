"""The plugin of docs/plugins.md is built in under fifty lines and works, embedded and on real servers."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nebengjek.cli import cli
from tests.flows.conftest import Backend

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SETTINGS,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(LISTED,) = re.findall(r"```console\n.*?\$ nebengjek plugins\n(.*?)\$ nebengjek run\n```", PAGE, re.DOTALL)


@pytest.fixture
def souvenir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path that the settings name."""
    (tmp_path / "souvenir.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "souvenir:souvenir"
    sys.modules.pop("souvenir", None)


def test_it_has_less_than_fifty_lines() -> None:
    assert sum(1 for line in EXAMPLE.splitlines() if line.strip()) < 50


def test_it_is_listed_with_what_it_takes_hears_and_serves(souvenir: str, tmp_path: Path) -> None:
    (tmp_path / "souvenir.toml").write_text(SETTINGS, encoding="utf-8")
    shown = CliRunner().invoke(cli, ["plugins"], env={"NEBENGJEK_SETTINGS": str(tmp_path / "souvenir.toml")})
    assert shown.output == LISTED


async def test_it_hears_two_events_serves_a_route_and_has_settings(backend: Backend, souvenir: str) -> None:
    table = {"souvenir": {"greeting": "Apa kabar"}}
    async with backend.own_world(plugins=[souvenir], plugin=table) as world:
        ani = await world.passenger()
        assert await ani.ask("GET", "/users/me/souvenir") == {"greeting": "Apa kabar", "distance_km": None}
        await ani.ask("PATCH", "/users/me", {"full_name": "Ani"})
        ride_id = await world.start_ride(await world.driver(), ani)
        # A ride of no kilometre costs nothing: it is completed when it arrives.
        await world.phones[-1].say("ride.arrive", {"ride_id": ride_id})
        await ani.expect("ride.completed", ride_id=ride_id)
        await world.quiet()
        shown = await ani.ask("GET", "/users/me/souvenir")
        assert shown == {"greeting": "Apa kabar Ani", "distance_km": 0.0}
