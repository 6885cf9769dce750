"""Rides over HTTP: commands, one's own rides in pages, estimates, operators."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request
from litestar.di import Provide

from nebengjek.contracts.rides import RideProgress
from nebengjek.tokens import Identity
from nebengjek.web import admin_guard, exception_handlers
from tests.rides.stage import NOON, Stage, stage

ADMIN_KEY = "an-operators-key-for-this-test"


async def _user(request: Request[Any, Any, Any]) -> Identity:
    return Identity(user_id=request.headers["x-user"], role="passenger", session_id="s", expires_at=NOON)


@asynccontextmanager
async def served(directory: Path, **values: Any) -> AsyncIterator[tuple[Stage, httpx.AsyncClient]]:
    async with stage(directory, admin_guard=admin_guard(ADMIN_KEY), **values) as acting:
        app = Litestar(
            acting.module.routes,
            dependencies={"user": Provide(_user)},
            exception_handlers=exception_handlers,
            openapi_config=None,
        )
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]  # Litestar types its scopes more narrowly
        async with httpx.AsyncClient(transport=transport, base_url="http://nebengjek") as client:
            client.headers["x-user"] = "passenger"
            yield acting, client


def _by(user_id: str) -> dict[str, str]:
    return {"x-user": user_id}


async def test_a_ride_by_http(tmp_path: Path) -> None:
    async with served(tmp_path) as (acting, client):
        ride_id = await acting.picked_up("driver", "passenger")
        path = f"/rides/{ride_id}"
        started = await client.post(f"{path}/start", headers=_by("driver"))
        assert (started.status_code, started.json()) == (200, {"ride_id": ride_id, "status": "ONGOING"})
        await acting.drive(ride_id, 1, 1.0, 1.0004)
        await acting.ear.wait(RideProgress)
        acting.odometer.total_km, acting.odometer.sequence = 2.5006, 1
        arrived = await client.post(f"{path}/arrive", headers=_by("driver"), json={"adjustment_factor": 0.5})
        bill = arrived.json()
        assert arrived.status_code == 200
        assert (bill["total_cost"], bill["adjusted_cost"], bill["admin_fee"]) == (7502, 3751, 188)
        assert bill["driver_payout"] == 3563
        paid = await client.post(f"{path}/pay", json={"amount": 3751})
        assert paid.status_code == 200
        assert (paid.json()["payment_id"], paid.json()["status"]) == (bill["payment_id"], "ACCEPTED")
        ride = (await client.get(path)).json()
        assert (ride["status"], ride["payment"]["attempts"], ride["driver_payout"]) == ("COMPLETED", 1, 3563)
        assert [(entry["sequence"], entry["distance_km"]) for entry in ride["ledger"]] == [(1, 1.0004), (2, 1.5002)]
        assert sum(entry["cost"] for entry in ride["ledger"]) == ride["total_cost"]
        assert ride["created_at"].endswith("Z")


async def test_a_ride_is_there_for_its_parties_only(tmp_path: Path) -> None:
    async with served(tmp_path) as (acting, client):
        ride_id = await acting.picked_up("driver", "passenger")
        assert (await client.get(f"/rides/{ride_id}")).json()["ledger"] == []
        assert (await client.get(f"/rides/{ride_id}", headers=_by("driver"))).status_code == 200
        stranger = await client.get(f"/rides/{ride_id}", headers=_by("stranger"))
        assert (stranger.status_code, stranger.json()["code"]) == (404, "NOT_FOUND")
        for command in ("start", "arrive", "cancel"):
            refused = await client.post(f"/rides/{ride_id}/{command}", headers=_by("stranger"))
            assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN")
        assert (await client.get("/rides", headers=_by("stranger"))).json() == {"items": [], "next_cursor": None}


BAD_BODIES = [
    ("arrive", '{"adjustment_factor": 0}'),
    ("arrive", '{"adjustment_factor": 1.5}'),
    ("arrive", '{"adjustment_factor": NaN}'),
    ("arrive", '{"adjustment_factor": "half"}'),
    ("arrive", "[]"),
    ("arrive", "{"),
    ("pay", '{"amount": "much"}'),
    ("pay", '{"amount": 1.5}'),
    ("pay", '{"amount": 15000.5, "method": "gopay"}'),
    ("pay", '{"amount": 1, "method": 7}'),
    ("pay", "{}"),
    ("pay", ""),
    ("cancel", '{"reason": 7}'),
]


async def test_a_bad_body_is_invalid(tmp_path: Path) -> None:
    async with served(tmp_path) as (acting, client):
        ride_id = await acting.under_way()
        headers = _by("driver") | {"content-type": "application/json"}
        for command, body in BAD_BODIES:
            response = await client.post(f"/rides/{ride_id}/{command}", content=body, headers=headers)
            assert (response.status_code, response.json()["code"]) == (400, "INVALID"), (command, body)
            assert response.headers["content-type"].startswith("application/problem+json")
        assert (await acting.ride(ride_id)).status == "ONGOING"


@pytest.mark.parametrize("body", [None, {}, {"adjustment_factor": None}])
async def test_an_omitted_factor_is_one(tmp_path: Path, body: object) -> None:
    async with served(tmp_path) as (acting, client):
        ride_id = await acting.under_way()
        acting.odometer.total_km = 1.0
        arrived = await client.post(f"/rides/{ride_id}/arrive", headers=_by("driver"), json=body)
        assert (arrived.status_code, arrived.json()["adjusted_cost"]) == (200, 3000)


async def test_a_cancellation_with_and_without_reason(tmp_path: Path) -> None:
    async with served(tmp_path) as (acting, client):
        for body, reason in [(None, None), ({"reason": "too far"}, "too far")]:
            ride_id = await acting.picked_up("driver", "passenger")
            response = await client.post(f"/rides/{ride_id}/cancel", json=body)
            assert response.json() == {"ride_id": ride_id, "status": "CANCELLED"}
            assert (await acting.ride(ride_id)).cancel_reason == reason


async def test_an_unavailable_odometer_is_503(tmp_path: Path) -> None:
    async with served(tmp_path) as (acting, client):
        ride_id = await acting.under_way()
        acting.odometer.away = True
        response = await client.post(f"/rides/{ride_id}/arrive", headers=_by("driver"))
        assert (response.status_code, response.json()["code"]) == (503, "UNAVAILABLE")


async def test_own_rides_in_pages_newest_first(tmp_path: Path) -> None:
    async with served(tmp_path) as (acting, client):
        made = []
        for number in range(7):
            ride_id = await acting.picked_up(f"driver{number}", "passenger")
            await acting.cancel(ride_id)
            made.append(ride_id)
        await acting.picked_up("driver", "other")
        seen: list[str] = []
        cursor: str | None = None
        for size in (3, 3, 1):
            parameters = {"limit": 3} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/rides", params=parameters)).json()
            assert len(page["items"]) == size
            seen += [item["ride_id"] for item in page["items"]]
            cursor = page["next_cursor"]
        assert cursor is None
        assert seen == sorted(made, reverse=True)
        exactly = (await client.get("/rides", params={"limit": 7})).json()
        assert (len(exactly["items"]), exactly["next_cursor"]) == (7, None)
        driven = (await client.get("/rides", headers=_by("driver3"))).json()["items"]
        assert [item["ride_id"] for item in driven] == [made[3]]
        assert (await client.get("/rides", params={"status": "PICKUP"})).json()["items"] == []
        assert len((await client.get("/rides", params={"status": "CANCELLED"})).json()["items"]) == 7


BAD_PARAMETERS = [
    ("limit", "0"),
    ("limit", "101"),
    ("limit", "many"),
    ("status", "LOST"),
    ("cursor", "zzz"),
    ("cursor", "!!"),
    ("cursor", ""),
    ("cursor", "\N{SNOWMAN}"),
    ("cursor", "JyBPUiAxPTEgLS0"),
]


async def test_a_bad_parameter_is_named(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        for name, value in BAD_PARAMETERS:
            response = await client.get("/rides", params={name: value})
            problem = response.json()
            assert (response.status_code, problem["code"]) == (400, "INVALID"), (name, value)
            assert name in problem["detail"]


async def test_an_estimate(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        response = await client.get("/fares/estimate", params={"from": "-6.1754,106.8272", "to": "-6.2443,106.7982"})
        found = response.json()
        assert response.status_code == 200
        assert found["duration_minutes"] == 35
        assert found["fare"] == round(found["distance_km"] * 3000)


BAD_PLACES = ["91,0", "0,181", "nan,0", "0", "", "0,0,0", "1e1,0", "a,b", "0, 0", "\x00,1", "9" * 400]


@pytest.mark.parametrize("name", ["from", "to"])
async def test_a_bad_or_missing_place_is_named(tmp_path: Path, name: str) -> None:
    async with served(tmp_path) as (_, client):
        other = {"from": "to", "to": "from"}[name]
        for text in BAD_PLACES:
            response = await client.get("/fares/estimate", params={other: "0,0", name: text})
            problem = response.json()
            assert (response.status_code, problem["code"]) == (400, "INVALID"), text
            assert problem["detail"].startswith(f"{name}:")
        missing = await client.get("/fares/estimate", params={other: "0,0"})
        assert (missing.status_code, missing.json()["code"]) == (400, "INVALID")
        assert name in missing.json()["detail"]


async def test_operators_see_and_end_rides(tmp_path: Path) -> None:
    key = {"X-API-Key": ADMIN_KEY}
    async with served(tmp_path) as (acting, client):
        for method, path in [
            ("GET", "/admin/rides"),
            ("POST", "/admin/rides/x/arrive"),
            ("POST", "/admin/rides/x/cancel"),
        ]:
            assert (await client.request(method, path)).status_code == 401
        assert (await client.get("/admin/rides", headers={"X-API-Key": "guess"})).status_code == 401
        gone = await acting.under_way("driver", "passenger")
        acting.odometer.total_km, acting.odometer.review = 2.0, True
        billed = await client.post(f"/admin/rides/{gone}/arrive", headers=key)
        assert (billed.status_code, billed.json()["status"], billed.json()["total_cost"]) == (200, "ARRIVED", 6000)
        cancelled = await acting.under_way("driver2", "passenger2")
        body = {"reason": "driver's phone is gone"}
        response = await client.post(f"/admin/rides/{cancelled}/cancel", headers=key, json=body)
        assert response.json() == {"ride_id": cancelled, "status": "CANCELLED"}
        refused = await client.post(f"/admin/rides/{gone}/cancel", headers=key)
        assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
        unknown = await client.post("/admin/rides/nobody/arrive", headers=key)
        assert unknown.status_code == 404

        async def shown(**parameters: Any) -> list[str]:
            answer = await client.get("/admin/rides", headers=key, params=parameters)
            return [item["ride_id"] for item in answer.json()["items"]]

        assert await shown() == [cancelled, gone]
        assert await shown(review=1) == [gone]
        assert await shown(review=0) == [cancelled]
        assert await shown(status="CANCELLED") == [cancelled]
        assert await shown(limit=1) == [cancelled]
