"""A search is what a passenger seeks from when he switches his finder on until he switches it off, in whatever order
match hears of that.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nebengjek import schema
from nebengjek.bus.testing import BusProbe
from nebengjek.clock import ManualClock
from nebengjek.contracts.geo import Location
from nebengjek.contracts.match import MatchFound, MatchRejected, RejectMatch
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.users import DriverCard, PassengerCard, UserBeacon, UserFinder, UserPresence
from nebengjek.database import Database
from nebengjek.match.module import match
from nebengjek.match.pool import MemoryPool
from nebengjek.streams import STREAMS

MONAS = Location(latitude=-6.1754, longitude=106.8272)
DRIVER, PASSENGER = uuid7(), uuid7()
VALUES: dict[str, Any] = {
    "radius_km": 5.0,
    "max_candidates": 5,
    "offers_per_driver": 3,
    "offer_ttl": 30.0,
    "search_ttl": 600.0,
    "seen_ttl": 1800.0,
    "open_within": 120.0,
    "open_check": 30.0,
}


def finder(version: int, *, began: int, is_active: bool = True) -> UserFinder:
    place = MONAS if is_active else None
    return UserFinder(
        user_id=PASSENGER,
        version=version,
        is_active=is_active,
        passenger=PassengerCard(name="Ayu"),
        location=place,
        target_location=place,
        began=began,
    )


@asynccontextmanager
async def driver_on_duty(folder: Path) -> AsyncIterator[tuple[BusProbe, Any]]:
    database = Database(f"sqlite:///{folder}/match.sqlite3")
    await schema.upgrade(database)
    clock = ManualClock()
    probe = BusProbe()
    bus = probe.bus(STREAMS, database, clock=clock)
    module = match(bus, database, MemoryPool(), clock, lambda km: 3000, lambda outcome: None, **VALUES)
    async with probe.playing(bus, module):
        card = DriverCard(name="Budi", vehicle_type="motorcycle", vehicle_plate="B 1 XYZ")
        await bus.publish(UserPresence(user_id=DRIVER, version=2, online=True))
        await bus.publish(UserBeacon(user_id=DRIVER, version=3, is_active=True, driver=card, location=MONAS))
        await probe.idle()
        yield probe, bus
    await database.close()


async def proposed(probe: BusProbe, bus: Any, said: UserFinder) -> list[str]:
    """The matches that were ever proposed, once this has been heard."""
    await bus.publish(said)
    await probe.idle()
    return [event.match_id for event in probe.published(MatchFound)]


@pytest.mark.parametrize("heard", ["in order", "the other way round", "never"])
async def test_who_switches_off_and_on_again_begins_a_new_search(tmp_path: Path, heard: str) -> None:
    async with driver_on_duty(tmp_path) as (probe, bus):
        (first,) = await proposed(probe, bus, finder(4, began=4))
        await bus.request(RejectMatch(match_id=first, user_id=DRIVER))
        off = finder(5, began=4, is_active=False)
        if heard == "in order":
            assert await proposed(probe, bus, off) == [first]
        # The driver who rejected him is asked again: it is another search.
        first, second = await proposed(probe, bus, finder(6, began=6))
        if heard == "the other way round":
            assert await proposed(probe, bus, off) == [first, second]
        assert [event.match_id for event in probe.published(MatchRejected)] == [first]


async def test_what_was_proposed_ends_with_its_search_though_the_end_was_not_heard(tmp_path: Path) -> None:
    async with driver_on_duty(tmp_path) as (probe, bus):
        (first,) = await proposed(probe, bus, finder(4, began=4))
        assert len(await proposed(probe, bus, finder(6, began=6))) == 2
        (ended,) = probe.published(MatchRejected)
        assert (ended.match_id, ended.match.reason) == (first, "cancelled")


async def test_a_finder_that_is_sent_again_goes_on_with_its_search(tmp_path: Path) -> None:
    async with driver_on_duty(tmp_path) as (probe, bus):
        (first,) = await proposed(probe, bus, finder(4, began=4))
        await bus.request(RejectMatch(match_id=first, user_id=DRIVER))
        assert await proposed(probe, bus, finder(5, began=4)) == [first]
        # Also one that overtakes another.
        assert await proposed(probe, bus, finder(8, began=4)) == [first]
        assert await proposed(probe, bus, finder(7, began=4)) == [first]
