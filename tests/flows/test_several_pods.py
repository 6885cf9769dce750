"""Three real processes that all serve phones, on real servers: rides across them, and phones that hop between them.

``TEST_PODS``: how many times as many kills and pairs (1). ``TEST_DISCONNECTS``: how often a line breaks (150).
``TEST_OUTAGE``: for how many seconds Redis or NATS is away (4). ``TEST_STORM``: how many phones come at once (40).
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from nebengjek.clock import SystemClock
from nebengjek.realtime.redis_mailbox import RedisMailbox
from tests.conformance.harness import Relay
from tests.flows.conftest import Real
from tests.flows.fleet import PATIENCE, Fleet, Pair, Traveller, fleet
from tests.flows.truth import check_fleet, check_frames
from tests.flows.world import BUNDARAN_HI, Refused, moved

pytestmark = pytest.mark.real

TIMES = int(os.environ.get("TEST_PODS", "1"))
STORM = int(os.environ.get("TEST_STORM", "40"))
AWAY = float(os.environ.get("TEST_OUTAGE", "4"))
DISCONNECTS = int(os.environ.get("TEST_DISCONNECTS", "150"))


@pytest.fixture(scope="module")
def pods(runner: asyncio.Runner, real_servers: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three pods that run everything."""
    started = fleet(real_servers, tmp_path_factory.mktemp("pods"))
    yield runner.run(started.__aenter__())
    runner.run(started.__aexit__(None, None, None))


STEPS = {
    "finder": "passenger",
    "driver accepts": "driver",
    "passenger accepts": "passenger",
    "start": "driver",
    "drive": "driver",
    "arrive": "driver",
    "pay": "passenger",
}
"""The steps in which somebody says something, and who."""


async def test_a_whole_ride_with_driver_and_passenger_on_different_pods(pods: Fleet) -> None:
    pairs = await pods.people(2)
    for pair in pairs:
        await pair.passenger.lives_on(pods.pods[1])
        await pair.driver.lives_on(pods.pods[0])
        await pair.ride(points=30)
        await pair.passenger.expect("ride.progress", ride_id=pair.ride_id, sequence=1)
        # Conflated frames come across too: the points of each were shown to the other.
        await pair.passenger.expect("ride.tracking", user_id=pair.driver.user_id)
        await pair.driver.expect("ride.tracking", user_id=pair.passenger.user_id)
        await pair.driver.expect("location.stored")
        assert {phone.ready["pod_id"] for phone in pair.both} == {"pod-1", "pod-2"}
    await check_fleet(pods, pairs)


async def test_phones_that_hop_pods_at_every_step_miss_nothing(pods: Fleet) -> None:
    (pair,) = await pods.people(1)

    async def hop() -> None:
        for phone in pair.both:
            phone.drop()

    for _ in range(3):
        await pair.ride(between=hop)
    assert {phone.connections > 30 for phone in pair.both} == {True}
    await check_fleet(pods, [pair])


async def test_a_pod_that_is_killed_in_the_middle_of_every_step_takes_nothing_along(pods: Fleet) -> None:
    """One pair in each step: all speak to the pod that dies at this moment, and go on with another one."""
    random = Random(4)
    pairs = await pods.people(len(STEPS))
    for round_ in range(TIMES):
        victim = pods.pods[round_ % len(pods.pods)]
        for pair, step in zip(pairs, STEPS, strict=True):
            await pair.ride(before=step)
            await getattr(pair, STEPS[step]).lives_on(victim)
        speaking = [asyncio.create_task(pair.ride(begin=step)) for pair, step in zip(pairs, STEPS, strict=True)]
        await asyncio.sleep(random.uniform(0, 0.03))
        victim.kill()
        for pair in pairs:
            for phone in pair.both:
                await phone.lives_on(None)
        await asyncio.gather(*speaking)
        await pods.restart(victim)
    await check_fleet(pods, pairs)


async def test_a_rolling_restart_under_load_is_not_noticed(pods: Fleet) -> None:
    pairs = await pods.people(3 * TIMES)
    over = asyncio.Event()

    async def busy(pair: Pair) -> None:
        while not over.is_set():
            await pair.ride()

    riding = [asyncio.create_task(busy(pair)) for pair in pairs]
    for pod in pods.pods[: 1 + TIMES]:
        assert await pod.end() == 0
        await pods.restart(pod)
    over.set()
    await asyncio.gather(*riding)
    assert min(len(pair.rides) for pair in pairs) >= 1
    await check_fleet(pods, pairs)


async def test_random_disconnects_during_rides_lose_double_and_reorder_nothing(pods: Fleet) -> None:
    """Lines that break at the phone, at the server, or stay behind unread, in any moment of rides that go on."""
    random = Random(10_000)
    pairs = await pods.people(8)
    over = asyncio.Event()

    async def busy(pair: Pair) -> None:
        while not over.is_set():
            await pair.ride(points=3)

    riding = [asyncio.create_task(busy(pair)) for pair in pairs]
    disconnects = 0
    while disconnects < DISCONNECTS:
        await asyncio.sleep(random.expovariate(100))
        phone = random.choice(random.choice(pairs).both)
        if not phone.is_up:
            continue
        disconnects += 1
        how = random.randrange(3)
        if how == 0:
            phone.drop()
        elif how == 1:
            pods.front.cut(phone.port)
        else:
            phone.vanish(random.uniform(0, 2))
        if any(one.done() for one in riding):
            break
    over.set()
    await asyncio.gather(*riding)
    tally = await pods.tally(pairs)
    rides = sum(len(pair.rides) for pair in pairs)
    print(f"{disconnects} disconnects in {rides} rides: {tally}")  # noqa: T201 - what it is run for
    await check_fleet(pods, pairs)


async def test_a_frame_id_repeated_on_another_pod_has_one_effect(pods: Fleet) -> None:
    (pair,) = await pods.people(1)
    sought = {"is_active": True, "location": pair.here(), "target_location": BUNDARAN_HI}
    passenger = pair.passenger
    answers = []
    for pod in pods.pods:
        await passenger.lives_on(pod)
        answers.append(await passenger.say("user.finder", sought, "the same"))
    assert [(answer["id"], answer["is_active"]) for answer in answers] == [("the same", True)] * 3
    await passenger.lives_on(pods.pods[0])
    with pytest.raises(Refused) as refused:
        await passenger.say("user.finder", {"is_active": False}, "the same")
    assert refused.value.code == "ID_REUSED"
    await pods.quiet()
    assert passenger.count("user.finder") == 1
    await passenger.say("user.finder", {"is_active": False})
    await check_fleet(pods, [pair])


async def test_both_sockets_of_a_user_hear_everything_on_two_pods(pods: Fleet) -> None:
    (pair,) = await pods.people(1)
    twins = [pair.passenger.twin(), pair.driver.twin()]
    for twin, phone in zip(twins, (pair.passenger, pair.driver), strict=True):
        twin.travel()
        await twin.lives_on(pods.pods[0])
        await phone.lives_on(pods.pods[1])
    await pair.ride()
    # One of two ends: the other goes on, and hears what is said from now on.
    for twin in twins:
        await twin.expect("ride.completed", ride_id=pair.ride_id)
        check_frames(twin.durable)
    await pair.driver.go_home()
    pair.driver, pair.rides = twins[1], []
    await pair.ride(before="driver accepts")
    for phone in (*pair.both, twins[0]):
        await phone.say("match.reject", {"match_id": pair.match_id})
        await phone.expect("match.rejected", match_id=pair.match_id)
    await check_fleet(pods, [pair])
    await twins[0].go_home()


@pytest.mark.parametrize("position", ["from the future", "negative", "of another user"])
async def test_a_position_that_no_mailbox_knows_is_reset_with_all_that_is_going_on(pods: Fleet, position: str) -> None:
    (pair,) = await pods.people(1)
    await pair.ride(before="driver accepts")
    await pods.quiet()
    asks = {
        "from the future": (pair.passenger.epoch, pair.passenger.last_seq + 1),
        "negative": (pair.passenger.epoch, -1),
        "of another user": (pair.driver.epoch, pair.driver.last_seq),
    }
    for pod in pods.pods:
        phone = pair.passenger.twin()
        phone.home = pod
        phone.epoch, phone.last_seq = asks[position]
        phone.travel()
        await phone.find(lambda frame: frame["event"] == "session.ready")
        assert (phone.ready["replay"], phone.ready["last_seq"]) == ("reset", pair.passenger.last_seq)
        assert [match["match_id"] for match in phone.ready["proposals"]] == [pair.match_id]
        assert phone.ready["finder"]["is_active"]
        await phone.go_home()
    await pair.passenger.say("match.reject", {"match_id": pair.match_id})
    await pair.passenger.say("user.finder", {"is_active": False})
    await check_fleet(pods, [pair])


async def test_many_phones_reconnect_at_once_when_their_pod_dies(pods: Fleet) -> None:
    phones = [Traveller(pods) for _ in range(STORM)]
    at_once = asyncio.Semaphore(16)

    async def come(phone: Traveller) -> None:
        async with at_once:
            await phone.login()
            phone.travel()
            await phone.say("user.finder", {"is_active": False})
            await phone.has(1)

    await asyncio.gather(*(come(phone) for phone in phones))
    mailbox = RedisMailbox(pods.redis, SystemClock())
    for phone in phones:
        # No doorbell is rung for it: they find it when they come back.
        await mailbox.append(phone.user_id, "missed", "ride.progress", b"{}")
    began = time.monotonic()
    pods.pods[1].kill()
    for phone in phones:
        phone.drop()
    async with asyncio.timeout(PATIENCE + STORM / 10):
        await asyncio.gather(*(phone.has(2) for phone in phones))
    print(f"{STORM} phones were back after {time.monotonic() - began:.1f} s")  # noqa: T201 - what it is run for
    for phone in phones:
        assert (set(phone.replays), [frame["seq"] for frame in phone.durable]) == ({"complete"}, [1, 2])
        await phone.go_home()
    await pods.restart(pods.pods[1])


async def ride_through(pods: Fleet, away: Relay, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Pairs in the middle of their rides, and the relay is shut for a while."""
    pairs = await pods.people(6)
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
    await check_fleet(pods, pairs)


async def code_of(phone: Traveller, event: str, data: dict[str, Any]) -> str | None:
    """Say it once; the code of the refusal, None = it was accepted."""
    frame_id = str(uuid4())
    await phone.tell(event, data, frame_id)
    answer = await phone.find(lambda frame: frame["event"] in ("ack", "error") and frame["data"].get("id") == frame_id)
    code: str | None = answer["data"].get("code")
    return code


async def test_redis_is_away_for_a_while(pods: Fleet) -> None:
    (pair,) = await pods.people(1)
    await pair.ride(before="start")

    async def meanwhile() -> None:
        assert await code_of(pair.driver, "ride.start", {"ride_id": pair.ride_id}) == "UNAVAILABLE"

    await ride_through(pods, pods.redis_line, meanwhile)
    await pair.ride(begin="start")
    await pair.go_home()


async def test_what_waits_for_redis_outlives_the_pod_that_holds_the_phones(pods: Fleet) -> None:
    """Nothing is acknowledged for a mailbox that cannot be reached: no process has the only copy of a frame."""
    victim = pods.pods[2]
    (pair,) = await pods.people(1)
    await pair.ride(before="start")
    for phone in pair.both:
        await phone.lives_on(victim)
    await pods.quiet()
    await pods.redis_line.close()
    async with asyncio.timeout(PATIENCE):
        while not await unsettled(pods, "RIDE_STREAM", "ride_cancelled_users"):
            # Without an id: answers are kept in Redis. Said again it changes nothing.
            await pair.passenger.tell("ride.cancel", {"ride_id": pair.ride_id})
            await asyncio.sleep(0.3)
    victim.kill()
    for phone in pair.both:
        phone.home = None
    await pods.redis_line.open()
    for phone in pair.both:
        await phone.expect("ride.cancelled", ride_id=pair.ride_id)
    await pods.restart(victim)
    await check_fleet(pods, [pair])
    assert {phone.count("ride.cancelled", ride_id=pair.ride_id) for phone in pair.both} == {1}


async def unsettled(pods: Fleet, stream: str, consumer: str) -> int:
    """How many messages wait for the consumer, or are in somebody's hands."""
    (found,) = [one for one in await pods.broker.consumers(stream) if one.spec.name == consumer]
    return found.num_pending + found.num_ack_pending


async def test_nats_is_away_for_a_while(pods: Fleet) -> None:
    waiting, asking = await pods.people(2)
    place: dict[str, Any] = {}
    await asking.ride(before="start")

    async def meanwhile() -> None:
        # What is written down is accepted, and said when the bus is back; what must be asked is refused.
        await waiting.beacon()
        await waiting.finder()
        for phone in waiting.both:
            await phone.has(1)
        assert await code_of(asking.driver, "ride.start", {"ride_id": asking.ride_id}) == "UNAVAILABLE"
        # Of a phone's points the newest waits.
        for metres in range(50):
            stamp = asking.here()["timestamp"]
            place.update(moved(asking.place, metres) | {"timestamp": stamp})
            await asking.driver.tell("location.update", {"location": place}, f"point {metres}")

    await ride_through(pods, pods.nats_line, meanwhile)
    await waiting.ride(begin="found")
    # Refused where it took too long, as a phone with an id is told; it says it again.
    await asking.driver.say("location.update", {"location": place}, "point 49")
    del place["timestamp"]
    await asking.driver.expect("location.stored", location=place)
    for metres in range(1, 49):
        await asking.driver.expect("error", id=f"point {metres}", code="UNAVAILABLE")
    await asking.ride(begin="driver is there")
    for pair in (waiting, asking):
        await pair.go_home()
