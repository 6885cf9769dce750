"""What an operator sees and may do over HTTP, with an API key, on a whole embedded application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from litestar import Litestar

from nebengjek.admin import admin_routes
from nebengjek.app import App
from nebengjek.bus.interface import MSG_ID, ConsumerSpec
from nebengjek.settings import load
from nebengjek.streams import STREAMS
from nebengjek.web import admin_guard, exception_handlers

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
async def operator(tmp_path: Path, key: str = KEY) -> AsyncIterator[Operator]:
    app = App(load(env={"DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3"}), sweeping=False)
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
