"""The plugin of docs/plugins.md is built in under fifty lines and works, embedded and on real servers."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import Backend

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def souvenir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path that the settings name."""
    (tmp_path / "souvenir.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "souvenir:souvenir"
    sys.modules.pop("souvenir", None)


def test_it_has_less_than_fifty_lines() -> None:
    assert sum(1 for line in EXAMPLE.splitlines() if line.strip()) < 50


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
