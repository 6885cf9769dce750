"""Redis or NATS is away while rides go on over three pods: nothing accepted is lost, and all goes on afterwards.

``TEST_OUTAGE``: for how many seconds (4).
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest

from tests.conformance.harness import Relay
from tests.flows.conftest import Real
from tests.flows.fleet import Fleet, Pair, Traveller
from tests.flows.truth import check_books, check_frames

pytestmark = pytest.mark.real

AWAY = float(os.environ.get("TEST_OUTAGE", "4"))


class Outages:
    """Three pods that reach their servers over relays, which can be shut."""

    def __init__(self, fleet: Fleet, redis: Relay, nats: Relay) -> None:
        self.fleet = fleet
        self.redis = redis
        self.nats = nats


async def _over(url: str) -> tuple[str, Relay]:
    parts = urlsplit(url)
    assert parts.port is not None
    relay = Relay(parts.port)
    await relay.open()
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{relay.port}"))), relay


@pytest.fixture(scope="module")
def outages(runner: asyncio.Runner, real_servers: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    async def begin() -> Outages:
        given: dict[str, Any] = await real_servers.fresh()
        redis_url, redis = await _over(given["redis__url"])
        nats_url, nats = await _over(given["nats__url"])
        env = {"REDIS_URL": redis_url, "NATS_URL": nats_url}
        fleet = Fleet(given, tmp_path_factory.mktemp("outages"), [None, None, None], **env)
        try:
            await fleet.start()
        except BaseException:
            await fleet.stop()
            raise
        return Outages(fleet, redis, nats)

    async def end() -> None:
        await made.fleet.stop()
        await made.redis.close()
        await made.nats.close()

    made = runner.run(begin())
    yield made
    runner.run(end())


async def ride_through(fleet: Fleet, away: Relay, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Pairs in the middle of their rides, and the relay is shut for a while."""
    pairs = await fleet.people(6)
    over = asyncio.Event()

    async def busy(pair: Pair) -> None:
        while not over.is_set():
            await pair.ride(points=3)

    riding = [asyncio.create_task(busy(pair)) for pair in pairs]
    for pair in pairs:
        await pair.driver.expect("ride.pickup")
    connections = [phone.connections for pair in pairs for phone in pair.both]
    await away.close()
    _, _ = await asyncio.gather(meanwhile(), asyncio.sleep(AWAY))
    # Who is connected stays.
    assert [phone.connections for pair in pairs for phone in pair.both] == connections
    await away.open()
    over.set()
    await asyncio.gather(*riding)
    tally = await fleet.tally(pairs)
    assert (tally.lost, tally.doubled, tally.reordered) == (0, 0, 0), tally
    for pair in pairs:
        for phone in pair.both:
            check_frames(phone.durable)
        await pair.go_home()
    await check_books(fleet.database)


async def code_of(phone: Traveller, event: str, data: dict[str, Any]) -> str | None:
    """Say it once; the code of the refusal, None = it was accepted."""
    frame_id = str(uuid4())
    await phone.tell(event, data, frame_id)
    answer = await phone.find(lambda frame: frame["event"] in ("ack", "error") and frame["data"].get("id") == frame_id)
    code: str | None = answer["data"].get("code")
    return code


async def test_redis_is_away_for_a_while(outages: Outages) -> None:
    (pair,) = await outages.fleet.people(1)
    await pair.ride(before="start")

    async def meanwhile() -> None:
        assert await code_of(pair.driver, "ride.start", {"ride_id": pair.ride_id}) == "UNAVAILABLE"

    await ride_through(outages.fleet, outages.redis, meanwhile)
    await pair.ride(begin="start")
    await pair.go_home()


async def test_nats_is_away_for_a_while(outages: Outages) -> None:
    waiting, asking = await outages.fleet.people(2)
    await asking.ride(before="start")

    async def meanwhile() -> None:
        # What is written down is accepted, and said when the bus is back; what must be asked is refused.
        await waiting.beacon()
        await waiting.finder()
        for phone in waiting.both:
            await phone.has(1)
        assert await code_of(asking.driver, "ride.start", {"ride_id": asking.ride_id}) == "UNAVAILABLE"
        # Points wait or are refused; what the phone says later is taken.
        for _ in range(50):
            await asking.driver.tell("location.update", {"location": asking.here()})

    await ride_through(outages.fleet, outages.nats, meanwhile)
    await waiting.ride(begin="found")
    await asking.ride(begin="driver is there")
    for pair in (waiting, asking):
        await pair.go_home()
