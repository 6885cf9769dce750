"""What an operator sees and may do over HTTP, with an API key, on a whole embedded application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from litestar import Litestar

from nebengjek.admin import admin_routes
from nebengjek.app import App
from nebengjek.bus.errors import ApiError, NotPermitted
from nebengjek.bus.messages import MSG_ID
from nebengjek.bus.specs import ConsumerSpec, StreamSpec
from nebengjek.settings import load
from nebengjek.streams import STREAMS
from nebengjek.web import admin_guard, exception_handlers, health_routes

KEY = "a-key-of-the-operators"


class Operator:
    def __init__(self, app: App, http: AsyncClient) -> None:
        self.app = app
        self.http = http
        self.died = asyncio.Event()
        counted = app.metrics.dead_letter

        def dead_letter(consumer: str, reason: str) -> None:
            counted(consumer, reason)
            self.died.set()

        app.metrics.dead_letter = dead_letter  # type: ignore[method-assign]

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def code(self, method: str, path: str, **query: Any) -> tuple[int, str]:
        answer = await self.http.request(method, path, params=query)
        return answer.status_code, answer.json()["code"]

    async def bury(self, count: int = 1) -> None:
        """Messages that no consumer of ride.cancelled can decode."""
        consumers = [spec for _, spec in self.app.bus._wanted if spec.startswith("ride_cancelled")]
        before = await self.app.bus.dead_letters.count()
        for number in range(count):
            await self.app.broker.submit(f"ride.cancelled.r{number}", b"{not json", {MSG_ID: f"bad-{before}-{number}"})
        await self.until_dead(before + count * len(consumers))

    async def until_dead(self, count: int) -> None:
        """Look again whenever one more died."""
        async with asyncio.timeout(10):
            while True:
                self.died.clear()
                if await self.app.bus.dead_letters.count() == count:
                    return
                await self.died.wait()


@asynccontextmanager
async def operator(tmp_path: Path, key: str = KEY, **env: str) -> AsyncIterator[Operator]:
    app = App(load(env={"DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3", **env}), sweeping=False)
    await app.start()
    routes = admin_routes(app.bus, app.pods.known, admin_guard(KEY))
    served: Any = Litestar([routes], exception_handlers=exception_handlers)
    async with AsyncClient(
        transport=ASGITransport(served), base_url="http://pod", headers={"X-API-Key": key} if key else {}
    ) as http:
        try:
            yield Operator(app, http)
        finally:
            await app.stop()


@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], f"{KEY}x"])
async def test_without_the_key_nothing_is_shown_and_nothing_done(tmp_path: Path, key: str) -> None:
    async with operator(tmp_path, key) as it:
        for method, path in [
            ("GET", "/admin/streams"),
            ("GET", "/admin/streams/RIDE_STREAM"),
            ("GET", "/admin/consumers"),
            ("GET", "/admin/pods"),
            ("GET", "/admin/dead-letters"),
            ("GET", "/admin/dead-letters/1"),
            ("POST", "/admin/dead-letters/1/replay"),
            ("DELETE", "/admin/dead-letters/1"),
            ("DELETE", "/admin/consumers/RIDE_STREAM/x"),
            ("GET", "/admin/consumers/RIDE_STREAM/x"),
            ("POST", "/admin/consumers/RIDE_STREAM/x/pause"),
            ("POST", "/admin/consumers/RIDE_STREAM/x/resume"),
            ("POST", "/admin/streams/RIDE_STREAM/purge"),
            ("DELETE", "/admin/streams/RIDE_STREAM"),
        ]:
            assert await it.code(method, path) == (401, "UNAUTHENTICATED")


async def test_streams_and_consumers(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        streams = {row["name"]: row for row in (await it.get("/admin/streams"))["items"]}
        assert set(streams) == {spec.name for spec in STREAMS}
        assert (streams["LOCATION_STREAM"]["storage"], streams["LOCATION_STREAM"]["subjects"]) == (
            "memory",
            ["location.>"],
        )
        one = await it.get("/admin/streams/RIDE_STREAM")
        assert one["consumers"] == len(one["consumer_list"]) > 5
        everything = (await it.get("/admin/consumers"))["items"]
        assert [row for row in everything if row["stream"] == "RIDE_STREAM"] == one["consumer_list"]
        assert (await it.get("/admin/consumers", stream="RIDE_STREAM"))["items"] == one["consumer_list"]
        names = {row["name"] for row in everything}
        assert {"match_accepted_rides", "match_accepted_users", "ride_pickup_match"} <= names
        assert not any(row["orphan"] or row["lag"] for row in everything)
        assert await it.code("GET", "/admin/streams/NONE") == (404, "NOT_FOUND")
        assert await it.code("GET", "/admin/consumers", stream="NONE") == (404, "NOT_FOUND")


async def test_a_consumer_that_nobody_wants_can_be_deleted_and_no_other(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        await it.app.broker.create_consumer("USER_STREAM", ConsumerSpec(name="user_created_gone", filters=("user.x",)))
        rows = (await it.get("/admin/consumers", stream="USER_STREAM"))["items"]
        assert [row["name"] for row in rows if row["orphan"]] == ["user_created_gone"]
        assert (await it.http.delete("/admin/consumers/USER_STREAM/user_created_gone")).status_code == 200
        assert await it.code("DELETE", "/admin/consumers/USER_STREAM/user_created_gone") == (404, "NOT_FOUND")
        assert await it.code("DELETE", "/admin/consumers/USER_STREAM/user_beacon_match") == (409, "CONFLICT")


async def test_dead_letters_are_listed_in_pages_and_shown(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        assert await it.get("/admin/dead-letters") == {"items": [], "next_after": None}
        await it.bury(2)
        everything = await it.get("/admin/dead-letters")
        total = len(everything["items"])
        assert total >= 4
        assert everything["next_after"] is None
        seen, after = [], 0
        while after is not None:
            page = await it.get("/admin/dead-letters", limit=3, after=after)
            seen += page["items"]
            after = page["next_after"]
        assert seen == everything["items"]
        first = everything["items"][0]
        assert (first["stream"], first["reason"], first["data"]) == ("RIDE_STREAM", "undecodable", "{not json")
        assert await it.get(f"/admin/dead-letters/{first['seq']}") == first


async def test_a_replayed_letter_comes_back_to_its_consumer_and_dies_there_again(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        await it.bury()
        letters = (await it.get("/admin/dead-letters"))["items"]
        replayed = await it.http.post(f"/admin/dead-letters/{letters[0]['seq']}/replay")
        assert replayed.status_code == 200
        assert replayed.json()["consumer"] == letters[0]["consumer"]
        await it.until_dead(len(letters))
        again = (await it.get("/admin/dead-letters"))["items"]
        assert sorted(letter["consumer"] for letter in again) == sorted(letter["consumer"] for letter in letters)
        assert again[-1]["seq"] > letters[-1]["seq"]
        assert again[-1]["consumer"] == letters[0]["consumer"]


async def test_a_dropped_letter_is_gone(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        await it.bury()
        seq = (await it.get("/admin/dead-letters"))["items"][0]["seq"]
        assert (await it.http.delete(f"/admin/dead-letters/{seq}")).status_code == 200
        for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/replay")]:
            assert await it.code(method, f"/admin/dead-letters/{seq}{path}") == (404, "NOT_FOUND")
        assert (await it.code("GET", f"/admin/dead-letters/{2**70}"))[0] == 400


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"after": -1}, {"limit": "many"}, {"after": 2**60}])
async def test_a_page_that_cannot_be(tmp_path: Path, query: dict[str, Any]) -> None:
    async with operator(tmp_path) as it:
        assert await it.code("GET", "/admin/dead-letters", **query) == (400, "INVALID")


async def test_pods(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        (pod,) = (await it.get("/admin/pods"))["items"]
        assert pod["pod_id"] == it.app.pod_id
        assert pod["modules"] == ["users", "location", "match", "rides"]
        assert pod["embedded"] == ["bus", "fast state", "database"]


async def test_a_stream_is_purged_in_part_and_whole(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        path = "/admin/streams/RIDE_STREAM"
        for n in range(6):
            await it.app.broker.submit(f"ride.note.{n % 2}", b"{}", {})

        async def purge(**query: Any) -> int:
            answer = await it.http.post(f"{path}/purge", params=query)
            assert answer.status_code == 200, answer.text
            purged: int = answer.json()["purged"]
            return purged

        assert await purge(subject="ride.note.1") == 3
        assert await purge(keep=2) == 1
        assert await purge(up_to=5) == 1
        assert (await it.get(path))["messages"] == 1
        assert await purge() == 1
        assert (await it.get(path))["messages"] == 0
        for query in ({"keep": 1, "up_to": 3}, {"subject": "a..b"}, {"subject": "a>"}, {"keep": -1}, {"up_to": 0}):
            answer = await it.http.post(f"{path}/purge", params=query)
            assert answer.status_code == 400, query
        assert await it.code("POST", "/admin/streams/NO_STREAM/purge") == (404, "NOT_FOUND")


async def test_a_stream_of_the_application_is_only_deleted_by_force_and_made_again(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        await it.app.broker.create_stream(StreamSpec(name="OLD", subjects=("old.>",)))
        assert (await it.http.delete("/admin/streams/OLD")).json()["name"] == "OLD"
        assert await it.code("DELETE", "/admin/streams/OLD") == (404, "NOT_FOUND")
        await it.app.broker.submit("ride.note.x", b"{}", {})
        assert await it.code("DELETE", "/admin/streams/RIDE_STREAM") == (409, "CONFLICT")
        deleted = await it.http.delete("/admin/streams/RIDE_STREAM", params={"force": "true"})
        assert deleted.json()["messages"] == 1
        there = await it.get("/admin/streams/RIDE_STREAM")
        assert (there["messages"], there["last_seq"]) == (0, 0)
        assert {row["name"] for row in there["consumer_list"]} >= {"ride_pickup_match", "ride_pickup_users"}
        await it.bury()


async def test_a_consumer_is_paused_and_goes_on(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        path = "/admin/consumers/USER_STREAM/user_beacon_match"
        row = (await it.http.post(f"{path}/pause", params={"seconds": 60})).json()
        assert row == await it.get(path)
        left = datetime.fromisoformat(row["paused_until"]) - datetime.now(UTC)
        assert timedelta(seconds=50) < left <= timedelta(seconds=60)
        await it.app.broker.submit("user.beacon.x", b"{not json", {})
        assert (await it.get(path))["pending"] == 1
        health = {one.consumer: one for one in (await it.app.bus.health()).consumers}
        assert (health["user_beacon_match"].lag, health["user_beacon_match"].paused_until is None) == (1, False)
        assert (await it.http.post(f"{path}/resume")).json()["paused_until"] is None
        await it.until_dead(1)
        for name in ("pause", "resume"):
            assert await it.code("POST", f"/admin/consumers/USER_STREAM/no_such/{name}") == (404, "NOT_FOUND")
        for seconds in (0, -1, 10**9):
            assert await it.code("POST", f"{path}/pause", seconds=seconds) == (400, "INVALID")


async def test_a_wanted_consumer_is_only_deleted_by_force_and_made_again_by_its_pods(tmp_path: Path) -> None:
    async with operator(tmp_path) as it:
        path = "/admin/consumers/RIDE_STREAM/ride_pickup_match"
        assert await it.code("DELETE", path) == (409, "CONFLICT")
        assert (await it.http.delete(path, params={"force": "true"})).status_code == 200
        async with asyncio.timeout(10):
            while (await it.http.get(path)).status_code == 404:  # noqa: ASYNC110 - the pod does not tell
                await asyncio.sleep(0.05)
        await it.app.broker.submit("ride.pickup.x", b"{not json", {})
        # Those of match, users and location.
        await it.until_dead(3)


async def test_what_the_server_does_not_permit_says_whom_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> int:
        raise NotPermitted("the NATS user match may not publish to $JS.API.STREAM.PURGE.RIDE_STREAM")

    async def other(*_: Any, **__: Any) -> int:
        raise ApiError(10110, "stream purge not permitted")

    async with operator(tmp_path) as it:
        monkeypatch.setattr(it.app.broker, "purge_stream", refuse)
        answer = await it.http.post("/admin/streams/RIDE_STREAM/purge")
        assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
        assert "the NATS user match may not publish" in answer.json()["detail"]
        assert "--modules operator" in answer.json()["detail"]
        monkeypatch.setattr(it.app.broker, "purge_stream", other)
        answer = await it.http.post("/admin/streams/RIDE_STREAM/purge")
        assert (answer.status_code, "10110" in answer.json()["detail"]) == (409, True)


async def test_a_consumer_that_lags_is_an_alarm_and_no_reason_to_go_away(tmp_path: Path) -> None:
    async with operator(tmp_path, NEBENGJEK__NATS__LAG_ALARM="2") as it:
        served: Any = Litestar([*health_routes(it.app.pod_id, it.app.examine)])
        async with AsyncClient(transport=ASGITransport(served), base_url="http://pod") as http:

            async def ready() -> tuple[int, str, dict[str, str]]:
                answer = await http.get("/health/ready")
                return answer.status_code, answer.json()["status"], answer.json().get("alarms", {})

            await it.app.broker.pause_consumer("USER_STREAM", "user_beacon_match", datetime.now(UTC) + timedelta(1))
            for _ in range(2):
                await it.app.broker.submit("user.beacon.x", b"{not json", {})
            assert await ready() == (200, "up", {})
            await it.app.broker.submit("user.beacon.x", b"{not json", {})
            status, word, alarms = await ready()
            assert (status, word) == (200, "degraded")
            assert (await http.head("/health/ready")).status_code == 200
            assert "user_beacon_match: 3 messages are not delivered yet, it is paused until" in alarms["lag"]
            await it.app.broker.pause_consumer("USER_STREAM", "user_beacon_match", None)
            await it.until_dead(3)
            assert await ready() == (200, "up", {})
            # What is down is down, alarm or not.
            await it.app.broker.close()
            assert (await ready())[:2] == (503, "down")
