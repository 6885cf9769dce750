"""Points while the bus is away: one is on its way, the newest waits behind it, and no command waits for either."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from shutil import copy

import pytest

from nebengjek.app import App
from nebengjek.bus import publishing
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.clock import ManualClock
from tests.flows.world import MONAS, Refused, World, moved, running, settings_for


def town(server: MemoryServer, database: Path, template: Path) -> AbstractAsyncContextManager[World]:
    copy(template, database)
    settings = settings_for(f"sqlite:///{database}")

    def make(clock: ManualClock) -> App:
        return App(settings, clock=clock, broker=MemoryBroker(server), sweeping=False)

    return running(make)


async def test_of_points_said_while_the_bus_is_away_the_newest_waits(tmp_path: Path, sqlite_template: Path) -> None:
    async with town(MemoryServer(), tmp_path / "town", sqlite_template) as world:
        driver = await world.driver()
        line = world.app.broker
        assert isinstance(line, MemoryBroker)
        line.lost()
        for number in range(5):
            await driver.tell("location.update", {"location": moved(MONAS, number)}, f"point {number}")
        for number in (1, 2, 3):
            await driver.expect("error", id=f"point {number}", code="UNAVAILABLE")
        # What is only written down does not wait for them, what has to ask is refused at once.
        assert (await driver.say("user.beacon", {"is_active": False}))["is_active"] is False
        with pytest.raises(Refused, match="UNAVAILABLE"):
            await driver.say("ride.start", {"ride_id": driver.user_id})
        line.found()
        for number in (0, 4):
            await driver.expect("ack", id=f"point {number}")
        assert driver.count("ack", id="point 2") == 0
        await driver.expect("location.stored", location=moved(MONAS, 4))


async def test_a_point_that_was_never_taken_holds_no_command_up(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PUBLISH_TIMEOUT", 0.2)
    server = MemoryServer()
    server.stop()
    async with town(server, tmp_path / "town", sqlite_template) as world:
        driver = await world.driver()
        await driver.tell("location.update", {"location": MONAS}, "point")
        await driver.expect("error", id="point", code="UNAVAILABLE")
        server.start()
        await world.app.broker.wait_connected()
        assert await driver.say("session.ack", {"seq": 0}, "later") == {"id": "later"}
