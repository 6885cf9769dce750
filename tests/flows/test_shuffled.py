"""The flows pass when every event is handled twice and in any order (scenario N1 of the bus), on both brokers.

The flows are those of the other files, unchanged, over a ``backend`` whose bus is shuffled. When one has ended well,
its books, locks and frames are looked through, once as it leaves them and once when all deadlines are over. With
``SHUFFLES=20`` each runs with so many seeds.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nebengjek.app import App
from nebengjek.bus.interface import Broker
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.testing import BusProbe
from nebengjek.clock import ManualClock
from nebengjek.settings import Settings
from tests.flows import test_matching
from tests.flows.conftest import Backend, Embedded
from tests.flows.test_matching import (  # noqa: F401 - they are collected here too
    test_a_finder_or_beacon_switched_off_ends_its_proposals,
    test_a_proposal_expires_for_both,
    test_a_search_ends_and_says_so,
    test_an_acceptance_can_be_repeated_and_both_make_a_match_once,
    test_the_nearest_are_proposed_and_not_more_than_allowed,
    test_the_other_proposals_of_a_taken_driver_end_as_taken,
    test_two_passengers_who_accept_one_driver_at_once_make_one_ride,
)
from tests.flows.test_ride import test_a_whole_ride_is_paid  # noqa: F401
from tests.flows.test_rides import (  # noqa: F401
    test_a_lost_answer_of_the_gateway_is_asked_for_and_charged_once,
    test_a_pickup_that_never_comes_is_cancelled,
    test_a_ride_without_movement_arrives_and_is_complete,
    test_cash_is_the_drivers_to_say,
    test_either_cancels_before_the_start_and_nobody_after,
    test_payment_is_the_passengers_exact_and_once,
    test_progress_is_told_on_the_way,
    test_who_does_not_pay_locks_nobody_but_owes,
)
from tests.flows.truth import check_books, check_frames, check_locks
from tests.flows.world import MONAS, World, moved
from tests.servers import NatsServer, nats_server

SEEDS = range(1, int(os.environ.get("SHUFFLES", "1")) + 1)


class Shuffled(Embedded):
    """``nats``: over that server instead of the broker in memory."""

    races = 10

    def __init__(self, folder: Path, template: Path, seed: int, nats: NatsServer | None) -> None:
        super().__init__(folder, template)
        self._seed = seed
        self._nats = nats
        self._probe = BusProbe()

    async def fresh(self) -> dict[str, Any]:
        settings = await super().fresh()
        if self._nats is not None:
            settings["nats__url"] = self._nats.fresh_account()
        return settings

    def app(self, settings: Settings, clock: ManualClock, sweeping: bool) -> App:
        def connect() -> Broker:
            return JetStreamBroker.from_settings(settings.nats, name="shuffled")

        self._probe = BusProbe(connect if settings.nats.is_real else None, shuffle=True, seed=self._seed)
        app = App(settings, clock=clock, sweeping=sweeping, broker=self._probe.broker())
        self._probe.watch(app.bus)
        return app

    @asynccontextmanager
    async def world(self, **values: Any) -> AsyncIterator[World]:
        async with self.own_world(**values) as world:
            yield world
            phones = list(world.phones)
            await self._check(world)
            await world.night()
            await self._check(world)
            for phone in phones:
                check_frames(phone.frames)

    async def _check(self, world: World) -> None:
        await self._probe.idle()
        assert self._probe.dead == []
        await check_books(world.app.database)
        await check_locks(world.app.database)


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture(params=[*(f"memory-{seed}" for seed in SEEDS), *(f"nats-{seed}" for seed in SEEDS)])
def backend(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Backend:
    kind, _, seed = request.param.partition("-")
    server = request.getfixturevalue("nats") if kind == "nats" else None
    return Shuffled(tmp_path, sqlite_template, int(seed), server)


async def test_a_driver_who_drives_on_is_found(backend: Backend) -> None:
    """A point that overtakes his beacon places him nowhere; a phone sends the next one soon."""
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        await driver.say("user.beacon", {"is_active": True, "location": moved(MONAS, 6000)})
        await passenger.say("user.finder", test_matching.FINDER)
        await passenger.expect("match.unavailable", reason="no_drivers")
        for metres in (3500, 3000):
            world.clock.advance(60)
            await driver.point(moved(MONAS, metres))
            await world.quiet()
        await passenger.expect("match.found", driver_id=driver.user_id)
