"""What an operator sees of a running pod: health, metrics, and the trace that a request continues."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nebengjek.settings import DEVELOPMENT_ADMIN_KEY
from tests.flows.conftest import Backend, Embedded
from tests.flows.problems import refused
from tests.flows.world import MONAS, World
from tests.servers import mortal_valkey_server

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(world: World) -> Samples:
    response = await world.http.get("/metrics")
    assert response.status_code == 200, response.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, metric: str, **labels: str) -> float:
    return samples[metric, frozenset(labels.items())]


async def test_health_answers_anybody_and_names_every_part(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()
        assert (await world.http.get("/health/live")).json() == {"status": "up", "pod_id": world.app.pod_id}
        for path in ("/health", "/health/ready"):
            response = await world.http.get(path)
            assert response.status_code == 200, response.text
            assert response.json() == {"status": "up", "pod_id": world.app.pod_id, "down": {}}
        response = await world.http.get("/health/detailed")
        detailed = response.json()
        assert [check["name"] for check in detailed["checks"]] == ["database", "fast state", "bus"]
        assert all(check["up"] and check["where"] for check in detailed["checks"])
        consumers = {one["consumer"] for one in detailed["details"]["bus"]["consumers"]}
        assert {"match_accepted_rides", "ride_pickup_users", "location_update_match"} <= consumers
        assert detailed["details"]["sockets"] == 1
        assert driver.user_id not in response.text


async def test_the_metrics_of_a_ride(backend: Backend) -> None:
    async with backend.own_world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.start_ride(driver, passenger)
        during = await scrape(world)
        assert value(during, "nebengjek_rides", state="ONGOING") == 1
        assert value(during, "nebengjek_sockets") == 2
        assert value(during, "nebengjek_matches_total", outcome="offered") == 1
        assert value(during, "nebengjek_matches_total", outcome="accepted") == 1
        bill = await driver.say("ride.arrive", {"ride_id": ride_id})
        assert bill["total_cost"] == 0
        await passenger.expect("ride.completed", ride_id=ride_id)
        await passenger.disconnect()
        await _until(lambda: world.app.delivery.sockets == 1)
        after = await scrape(world)
        # Ended rides are counted as events; here each scrape would read all that ever were.
        states = {dict(labels)["state"]: count for (name, labels), count in after.items() if name == "nebengjek_rides"}
        assert states == {"PICKUP": 0, "ONGOING": 0, "ARRIVED": 0}
        assert value(after, "nebengjek_sockets") == 1
        accepted = {"stream": "MATCH_STREAM", "event": "match.accepted", "consumer": "match_accepted_rides"}
        for outcome in ("delivered", "acked"):
            assert value(after, "nebengjek_messages_total", **accepted, outcome=outcome) == 1
        assert (
            value(
                after,
                "nebengjek_messages_total",
                stream="RIDE_STREAM",
                event="ride.pickup",
                consumer="",
                outcome="published",
            )
            >= 1
        )
        assert value(after, "nebengjek_handler_seconds_count", consumer="match_accepted_rides") == 1
        for name in ("lag", "ack_pending", "redelivered"):
            assert value(after, f"nebengjek_consumer_{name}", **accepted) == 0
        assert value(after, "nebengjek_consumer_moving", **accepted) == 1
        assert value(after, "nebengjek_dead_letters_kept") == 0
        assert value(after, "nebengjek_outbox_backlog") >= 0
        assert value(after, "nebengjek_bus_up") == 1
        text = (await world.http.get("/metrics")).text
        for phone in (driver, passenger):
            assert phone.msisdn[3:] not in text
            assert phone.user_id not in text


async def _until(holds: Any) -> None:
    """A socket's end is noticed by the server a moment after the phone's; nothing tells when."""
    async with asyncio.timeout(8):
        while not holds():  # noqa: ASYNC110 - another task's work
            await asyncio.sleep(0.005)


async def _ready(world: World) -> dict[str, Any]:
    """The answer of a pod that is not: which parts are down."""
    response = await world.http.get("/health/ready")
    assert response.status_code == 503, response.text
    assert (await world.http.get("/health")).status_code == 503
    assert (await world.http.get("/health/detailed")).json()["status"] == "down"
    assert (await world.http.get("/health/live")).status_code == 200
    down: dict[str, Any] = response.json()["down"]
    return down


async def test_without_its_bus_a_pod_lives_and_is_not_ready(tmp_path: Path, sqlite_template: Path) -> None:
    async with Embedded(tmp_path, sqlite_template).own_world() as world:
        broker: Any = world.app.broker
        broker.server.stop()
        assert "bus" in await _ready(world)
        assert value(await scrape(world), "nebengjek_bus_up") == 0
        broker.server.start()
        async with asyncio.timeout(8):
            while (await world.http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - it is asked for
                await asyncio.sleep(0.02)
        assert value(await scrape(world), "nebengjek_bus_up") == 1


@pytest.mark.real
async def test_without_redis_a_pod_lives_and_is_not_ready(tmp_path: Path, sqlite_template: Path) -> None:
    with mortal_valkey_server() as redis:
        async with Embedded(tmp_path, sqlite_template).own_world(redis__url=redis.url) as world:
            assert (await world.http.get("/health/ready")).status_code == 200
            await asyncio.to_thread(redis.stop)
            assert (await _ready(world))["fast state"] == "redis does not answer, try again"
            assert value(await scrape(world), "nebengjek_sockets") == 0
            await asyncio.to_thread(redis.start)
            assert (await world.http.get("/health/ready")).status_code == 200


async def test_a_driver_is_no_operator(backend: Backend) -> None:
    async with backend.world() as world:
        driver = await world.driver()
        key = {"X-API-Key": DEVELOPMENT_ADMIN_KEY}
        for path in ("/admin/streams", "/admin/rides", "/admin/flags", "/admin/pods", "/admin/dead-letters"):
            refused(await driver.http("GET", path), 401, "UNAUTHENTICATED")
            assert (await world.http.get(path, headers=key)).status_code == 200
            # Nor is an operator a driver.
        refused(await world.http.get("/users/me", headers=key), 401, "UNAUTHENTICATED")


async def test_a_request_continues_the_trace_of_its_caller(backend: Backend) -> None:
    async with backend.world() as world:
        driver, passenger = await world.driver(), await world.passenger()
        ride_id = await world.pickup(driver, passenger)
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        headers = driver.bearer | {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        response = await world.http.post(f"/rides/{ride_id}/cancel", json={}, headers=headers)
        assert response.status_code == 200, response.text
        await passenger.expect("ride.cancelled", ride_id=ride_id)
        message = await world.app.broker.get_message("RIDE_STREAM", last_by_subject=f"ride.cancelled.{ride_id}")
        assert message.headers["traceparent"].split("-")[1] == trace_id
        # Whatever a caller calls a trace.
        for garbage in ("00-0-0-0", "x" * 4000, "00-" + "g" * 32 + "-b7ad6b7169203331-01"):
            headers["traceparent"] = garbage
            response = await world.http.post("/location", json={"location": MONAS}, headers=headers)
            assert response.status_code == 202, response.text
