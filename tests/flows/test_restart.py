"""A restart in the middle of anything loses nothing: the ride goes on and is paid, once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.wire import free_port
from nebengjek.app import App
from nebengjek.clock import ManualClock
from tests.flows.conftest import Backend
from tests.flows.world import BUNDARAN_HI, MONAS, Phone, World, moved


async def again(world: World, *phones: Phone) -> None:
    """The application ends and starts; the phones come back."""
    await world.restart()
    for phone in phones:
        await phone.disconnect()
        await phone.connect()


async def test_a_ride_survives_a_restart_between_any_two_steps(backend: Backend) -> None:
    async with backend.own_world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.say("user.beacon", {"is_active": True, "location": MONAS})
        await again(world, driver, passenger)
        await passenger.say("user.finder", {"is_active": True, "location": MONAS, "target_location": BUNDARAN_HI})
        await again(world, driver, passenger)
        await world.app.sweep()
        ready = await _snapshot(passenger, lambda one: bool(one["proposals"]))
        match_id = ready["proposals"][0]["match_id"]
        await driver.say("match.accept", {"match_id": match_id})
        await again(world, driver, passenger)
        await passenger.say("match.accept", {"match_id": match_id})
        await again(world, driver, passenger)
        ready = await _snapshot(driver, lambda one: one["ride"] is not None)
        ride_id = ready["ride"]["ride_id"]
        assert ready["match"]["match_id"] == match_id
        world.clock.advance(10)
        await driver.point(MONAS)
        await passenger.point(MONAS)
        await driver.say("ride.start", {"ride_id": ride_id})
        await again(world, driver, passenger)
        await world.app.sweep()
        await world.drive(driver, 1500)
        await again(world, driver, passenger)
        await world.app.sweep()
        await world.drive(driver, 1500, begin=1500)
        bill = await driver.say("ride.arrive", {"ride_id": ride_id})
        # Embedded, the points since the last checkpoint go with the process: the way is then a straight line.
        assert bill["total_cost"] == pytest.approx(9000, rel=0.01)
        await again(world, driver, passenger)
        pay = {"ride_id": ride_id, "amount": bill["adjusted_cost"]}
        assert (await passenger.say("ride.pay", pay))["status"] == "ACCEPTED"
        await again(world, driver, passenger)
        assert (await passenger.say("ride.pay", pay))["status"] == "ACCEPTED"
        ride = await passenger.ask("GET", f"/rides/{ride_id}")
        assert (ride["status"], ride["payment"]["attempts"]) == ("COMPLETED", 1)
        assert [one["ride_id"] for one in (await driver.ask("GET", "/rides"))["items"]] == [ride_id]


async def _snapshot(phone: Phone, wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """``session.ready`` as soon as it shows what is ``wanted``: what a restart left in the outbox comes after it."""
    ready: dict[str, Any] = {}
    for _ in range(100):
        await phone.disconnect()
        ready = await phone.connect()
        if wanted(ready):
            return ready
    raise AssertionError(ready)


def serve(database: Path, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{database}",
        "NEBENGJEK__WEB__FRAMES_PER_SECOND": "10000",
        "NEBENGJEK__WEB__FRAME_BURST": "10000",
    }
    command = [sys.executable, "-m", "nebengjek", "run", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    for line in process.stdout:
        if str(port).encode() in line:
            return process
    raise AssertionError(f"the server ended with {process.wait()}")


class Killed:
    """A server process that ``kill`` ends without a word, and starts again on the same file."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = serve(database, self.port)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def start(self) -> None:
        self.process = serve(self._database, self.port)


async def test_a_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    server = Killed(tmp_path / "killed.sqlite3")

    class There:
        """As much of a world as a phone needs."""

        url = server.url
        clock = ManualClock()
        http = httpx.AsyncClient(base_url=server.url, timeout=10, verify=False)

    world: World = There()  # type: ignore[assignment]
    try:
        driver = await (await Phone(world).login()).become_driver()
        passenger = await Phone(world).login()
        for phone in (driver, passenger):
            await phone.connect()
        await driver.say("user.beacon", {"is_active": True, "location": MONAS})
        await passenger.say(
            "user.finder", {"is_active": True, "location": moved(MONAS, 20), "target_location": BUNDARAN_HI}
        )
        match_id = (await driver.expect("match.found"))["data"]["match_id"]
        await driver.say("match.accept", {"match_id": match_id})
        await passenger.say("match.accept", {"match_id": match_id})
        # The acceptance is answered; the ride, the frames and the locks are still on their way through the bus.
        server.kill()
        server.start()
        await passenger.disconnect()
        await passenger.connect()
        await driver.disconnect()
        ready = await driver.connect()
        # Whether the ride was opened before the phone was back or after it is a matter of milliseconds.
        ride = ready["ride"] or (await driver.expect("ride.pickup", match_id=match_id))["data"]
        ride_id = ride["ride_id"]
        await driver.say("ride.cancel", {"ride_id": ride_id, "reason": "enough"})
        await passenger.expect("ride.cancelled", ride_id=ride_id)
        server.kill()
        server.start()
        for phone in (driver, passenger):
            await phone.disconnect()
            await phone.connect()
        rides = (await passenger.ask("GET", "/rides"))["items"]
        assert [(ride["ride_id"], ride["status"]) for ride in rides] == [(ride_id, "CANCELLED")]
        await driver.say("user.beacon", {"is_active": False})
        for phone in (driver, passenger):
            await phone.disconnect()
    finally:
        await world.http.aclose()
        server.kill()


async def test_a_match_without_a_ride_fails_and_frees_both(backend: Backend) -> None:
    async with backend.own_world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        everything = world.make
        settings = world.app.settings

        def without_rides(clock: ManualClock) -> App:
            return App(settings, clock=clock, sweeping=False, running=["users", "location", "match"])

        world.make = without_rides
        await again(world, driver, passenger)
        match_id = await world.pair(driver, passenger)
        await driver.say("match.accept", {"match_id": match_id})
        await passenger.say("match.accept", {"match_id": match_id})
        await driver.expect("match.accepted", match_id=match_id)
        # rides was away until after open_before: it opens no ride, and says so when it is asked.
        world.clock.advance(121)
        await world.app.sweep()
        world.make = everything
        await again(world, driver, passenger)
        world.clock.advance(30)
        await world.app.sweep()
        for phone in (driver, passenger):
            failed = await phone.expect("match.rejected", match_id=match_id)
            assert (failed["data"]["reason"], failed["data"]["match_status"]) == ("failed", "FAILED")
        assert (await driver.ask("GET", "/rides"))["items"] == []
        await driver.say("user.beacon", {"is_active": True, "location": MONAS})
        await passenger.say("user.finder", {"is_active": True, "location": MONAS, "target_location": BUNDARAN_HI})
        await passenger.find(lambda one: one["event"] == "match.found" and one["data"]["match_id"] != match_id)
