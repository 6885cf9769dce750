"""A ride is paid once, nothing is doubled or lost, whenever the process is killed (scenario N2 of the bus).

A dry run counts the moments; then the scenario is played with the process killed at one of them, and in storms, with
many deaths in one play. Of the moments a sample is taken, always the same one, and the test says how many of how many;
``KILLS=200`` takes so many, ``KILLS=all`` every one. ``STORMS=20`` lets so many of them pass over each scenario.
"""

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, count
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.flows.lives import Faults, InProcess, OverNats, Phone, Town, Wires, leave_the_dead, watching
from tests.flows.truth import check_books, check_frames, check_locks
from tests.flows.world import BUNDARAN_HI, MONAS, moved, settings_for
from tests.servers import NatsServer, nats_server

Scenario = Callable[[Town], Awaitable[None]]

KILLS = os.environ.get("KILLS", "")
STORMS = int(os.environ.get("STORMS", "2"))
_number = count(1)


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    """What was logged. Not to be printed: a death leaves many tracebacks."""
    with capture_logs() as events:
        yield events


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


# -- steps


async def look(town: Town, passenger: Phone) -> None:
    finder = {"is_active": True, "location": moved(MONAS, 20), "target_location": BUNDARAN_HI}
    await town.say(passenger, "user.finder", finder)


async def pickup(town: Town, driver: Phone, passenger: Phone) -> str:
    """Both look, both accept; the ride's id."""
    await town.say(driver, "user.beacon", {"is_active": True, "location": MONAS})
    await look(town, passenger)
    match_id = await town.eventually(passenger.proposal)
    for phone in (driver, passenger):
        await town.say(phone, "match.accept", {"match_id": match_id})
    return await town.eventually(lambda: driver.ride("PICKUP"))


async def drive(town: Town, driver: Phone, passenger: Phone, metres: int = 1500) -> tuple[str, int]:
    """To the arrival: the ride's id and what is to be paid."""
    ride_id = await pickup(town, driver, passenger)

    async def start() -> None:
        # Where the phones are may have died with the process.
        town.clock.advance(5)
        await driver.point(MONAS)
        await passenger.point(MONAS)
        await driver.say("ride.start", {"ride_id": ride_id}, "start")

    await town.insist(start)
    for done in range(300, metres, 300):
        town.clock.advance(30)
        await town.insist(partial(driver.point, moved(MONAS, done)))

    async def arrive() -> int:
        town.clock.advance(30)
        await driver.point(moved(MONAS, metres))
        bill = await driver.say("ride.arrive", {"ride_id": ride_id}, "arrive")
        assert bill["total_cost"] == pytest.approx(metres * 3, rel=0.01)
        return int(bill["adjusted_cost"])

    return ride_id, await town.insist(arrive)


async def pay(town: Town, passenger: Phone, ride_id: str, amount: int) -> None:
    """A try that was cut off stays open until the gateway is known to have never heard of it."""
    while (await town.say(passenger, "ride.pay", {"ride_id": ride_id, "amount": amount}))["status"] != "ACCEPTED":
        await town.pass_by(11)


# -- scenarios


async def paid(town: Town) -> None:
    driver, passenger = await town.driver(), await town.passenger()
    ride_id, amount = await drive(town, driver, passenger)
    await pay(town, passenger, ride_id, amount)
    for phone in (driver, passenger):
        assert await town.eventually(partial(phone.ride, "COMPLETED", "OVER")) == ride_id


async def second_thoughts(town: Town) -> None:
    """Two look, one is taken and cancels; the other looks anew, and is rejected."""
    driver, first, second = await town.driver(), await town.passenger(), await town.passenger()
    await look(town, second)
    ride_id = await pickup(town, driver, first)
    await town.eventually(lambda: second.proposal() is None or None)
    await town.say(first, "ride.cancel", {"ride_id": ride_id, "reason": "rain"})
    await town.eventually(lambda: driver.ride("CANCELLED", "OVER"))
    await town.say(second, "user.finder", {"is_active": False})
    await look(town, second)
    match_id = await town.eventually(second.proposal)
    await town.say(driver, "match.reject", {"match_id": match_id})
    await town.eventually(lambda: second.proposal() is None or None)


async def overdue(town: Town) -> None:
    driver, passenger = await town.driver(), await town.passenger()
    ride_id, amount = await drive(town, driver, passenger, 300)
    await town.pass_by(901)
    await town.eventually(lambda: driver.ride("COMPLETED", "OVER"))
    await pay(town, passenger, ride_id, amount)
    # Who is asked for the next ride hears a little later that this one is paid.
    await town.eventually(lambda: True)
    await look(town, passenger)


# -- plays


class Stage:
    """Where plays take place, each on a database of its own."""

    def __init__(self, folder: Path, template: Path, wires: Callable[[], Wires]) -> None:
        self._folder = folder
        self._template = template
        self._wires = wires

    async def play(self, scenario: Scenario, fatal: Sequence[int] = ()) -> Faults:
        """With the process dying at these moments; then everything must be as if it had not."""
        path = self._folder / f"{next(_number)}.sqlite3"
        shutil.copy(self._template, path)
        faults = Faults(fatal)
        asyncio.get_running_loop().set_exception_handler(leave_the_dead)
        town = Town(settings_for(f"sqlite:///{path}"), faults, self._wires())
        try:
            await town.rise()
            await scenario(town)
            await town.eventually(lambda: True)
            with watching():
                assert town.probe.dead == []
                await check_books(town.app.database)
                await check_locks(town.app.database)
            for phone in town.phones:
                check_frames(phone.frames)
            await town.end()
        except BaseException as error:
            error.add_note(f"killed at {', '.join(faults.deaths)} while {scenario.__name__}")
            raise
        path.unlink()
        return faults

    async def kill_once(self, scenario: Scenario, sample: int) -> None:
        """At one moment of each play."""
        moments = (await self.play(scenario)).moments
        number = moments if KILLS == "all" else min(moments, int(KILLS or sample))
        chosen = sorted(random.Random(1).sample(range(1, moments + 1), number))
        died = 0
        for moment in chosen:
            faults = await self.play(scenario, [moment])
            # What a broker delivers in one batch differs from play to play: one may end before the moment comes.
            assert len(faults.deaths) == (1 if faults.moments >= moment else 0)
            died += len(faults.deaths)
        assert died > len(chosen) // 2
        print(f"{scenario.__name__}: killed at {died} of {moments} moments")  # noqa: T201 - the report

    async def storm(self, scenario: Scenario, seed: int) -> None:
        """Up to twelve lives of sixty to a hundred and fifty moments each."""
        gaps = random.Random(seed)
        deaths = (await self.play(scenario, list(accumulate(gaps.randint(60, 150) for _ in range(12))))).deaths
        assert len(deaths) > 2
        print(f"{scenario.__name__}: killed {len(deaths)} times")  # noqa: T201


@pytest.fixture
def embedded(tmp_path: Path, sqlite_template: Path) -> Stage:
    return Stage(tmp_path, sqlite_template, InProcess)


@pytest.fixture
def over_nats(tmp_path: Path, sqlite_template: Path, nats: NatsServer) -> Stage:
    return Stage(tmp_path, sqlite_template, lambda: OverNats(nats))


@pytest.mark.parametrize(("scenario", "sample"), [(paid, 20), (second_thoughts, 10), (overdue, 10)])
async def test_killed_at_any_moment(embedded: Stage, scenario: Scenario, sample: int) -> None:
    await embedded.kill_once(scenario, sample)


@pytest.mark.parametrize("seed", range(STORMS))
@pytest.mark.parametrize("scenario", [paid, second_thoughts])
async def test_killed_again_and_again(embedded: Stage, scenario: Scenario, seed: int) -> None:
    await embedded.storm(scenario, seed)


async def test_killed_with_nats_going_on(over_nats: Stage) -> None:
    await over_nats.kill_once(paid, 6)
