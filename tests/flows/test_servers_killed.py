"""nats-server and Valkey are killed with -9 under three pods with rides going on, and come back, one of them empty."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.flows.conftest import Real
from tests.flows.fleet import PATIENCE, Fleet, Pair, Traveller, fleet
from tests.flows.truth import check_books, check_fleet, check_locks
from tests.servers import NatsServer, ValkeyServer, mortal_valkey_server, nats_server

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with mortal_valkey_server(kept=True) as server:
        yield server


@pytest.fixture(scope="module")
def pods(
    runner: asyncio.Runner,
    real_servers: Real,
    nats: NatsServer,
    valkey: ValkeyServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """Three pods that run everything, on servers that may die."""
    mortal = Real(nats, valkey.url, real_servers.postgres, real_servers.template)
    with ExitStack() as stack:
        started = fleet(mortal, tmp_path_factory.mktemp("pods"))
        made = runner.run(started.__aenter__())
        stack.callback(lambda: runner.run(started.__aexit__(None, None, None)))
        yield made


async def revive(pods: Fleet, valkey: ValkeyServer) -> None:
    await asyncio.to_thread(valkey.start)
    # Who looks on, by connections that he had before, does not see the new one otherwise.
    await pods.redis.connection_pool.disconnect()


async def test_killed_with_their_data_kept_neither_costs_a_ride_or_a_frame(
    pods: Fleet, nats: NatsServer, valkey: ValkeyServer
) -> None:
    """Pairs in all moments of their rides when it happens; each ends the ride that it is on, and has another one."""
    pairs = await pods.people(4)
    enough = asyncio.Event()

    async def busy(pair: Pair) -> None:
        while not enough.is_set():
            await pair.ride(points=3)
        await pair.ride(points=3)

    riding = [asyncio.create_task(busy(pair)) for pair in pairs]

    async def under_way() -> None:
        for pair in pairs:
            since = len(pair.driver.frames)
            await pair.driver.find(lambda frame: frame["event"] == "ride.started", since=since)

    await under_way()
    nats.kill()
    await asyncio.to_thread(nats.start)
    await under_way()
    valkey.kill()
    await revive(pods, valkey)
    await under_way()
    enough.set()
    await asyncio.gather(*riding)
    await check_fleet(pods, pairs)


STEPS = ("finder", "driver accepts", "passenger accepts", "start", "drive", "arrive", "pay")
"""Where a pair stands when Redis forgets everything: before this step."""


async def again(phone: Traveller) -> dict[str, Any]:
    """Its line breaks; what it is told when it comes back."""
    connections = phone.connections
    phone.drop()
    await phone.find(lambda _: phone.connections > connections)
    return phone.ready


def check_snapshot(pair: Pair, step: str, ready: dict[str, Any]) -> None:
    proposed = {match["match_id"] for match in ready["proposals"]}
    if step == "finder":
        assert (proposed, ready["match"], ready["ride"]) == (set(), None, None)
    elif step.endswith("accepts"):
        assert (proposed, ready["match"], ready["ride"]) == ({pair.match_id}, None, None)
    else:
        states = {"start": "PICKUP", "drive": "ONGOING", "arrive": "ONGOING", "pay": "ARRIVED"}
        ride = ready["ride"]
        assert (ride["ride_id"], ride["status"]) == (pair.ride_id, states[step])


async def test_redis_comes_back_empty(pods: Fleet, valkey: ValkeyServer) -> None:
    pairs = dict(zip(STEPS, await pods.people(len(STEPS)), strict=True))
    for step, pair in pairs.items():
        await pair.ride(points=3, before=step)
    late = Traveller(pods)
    over = await Traveller(pods).login()
    await over.ask("POST", "/auth/logout", {"refresh_token": over.refresh_token})
    code = (await late.ask("POST", "/auth/otp/generate", {"msisdn": late.msisdn}))["otp"]
    await pods.quiet()
    valkey.kill()
    valkey.forget()
    await revive(pods, valkey)
    async with asyncio.timeout(PATIENCE):
        for pod in pods.pods:
            await pod.ready()
    # A code is lost, and whoever has it is told so; the next one serves.
    lost = await late.http("POST", "/auth/otp/verify", {"msisdn": late.msisdn, "otp": code})
    assert (lost.status_code, lost.json()["code"]) == (401, "OTP_EXPIRED")
    await late.login()
    # Which sessions have ended is read again where it is written down for good.
    async with asyncio.timeout(PATIENCE):
        while (await over.http("GET", "/users/me")).status_code != 401:  # noqa: ASYNC110 - it is asked, it does not tell
            await asyncio.sleep(0.1)
    for step, pair in pairs.items():
        for phone in pair.both:
            # Nothing is said to it, and yet it is told that what it has seen is not the end of what was said.
            await phone.find(lambda frame: frame["event"] == "session.ready" and frame["data"]["replay"] == "reset")
            ready = phone.ready
            while ready["missing"]:
                # Named is who took more than a second: this machine has other things to do.
                ready = await again(phone)
            check_snapshot(pair, step, ready)
    # Who is on the way to the start shows where he is, as phones do all the time; nobody says anything else again.
    await asyncio.gather(
        *(pair.ride(points=3, begin="driver is there" if step == "start" else step) for step, pair in pairs.items())
    )
    await asyncio.gather(*(pair.ride(points=3) for pair in pairs.values()))
    await pods.quiet()
    for pair in pairs.values():
        assert len(set(pair.rides)) == 2
        for ride_id in pair.rides:
            ride = await pair.passenger.ask("GET", f"/rides/{ride_id}")
            assert (ride["status"], ride["payment"]["status"]) == ("COMPLETED", "ACCEPTED")
            for phone in pair.both:
                assert phone.count("ride.completed", ride_id=ride_id) == 1
        await pair.go_home()
    await check_books(pods.database)
    await check_locks(pods.database)
