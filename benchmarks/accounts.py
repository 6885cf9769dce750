"""(f) What follows from an account: pictures taken in and made small, the search built anew, events with a bad handler.

Client and server share one process, so the longest stall of the event loop can be told; the peer of an upload is a bare
handler of the same framework and server that writes the same bytes into a file.
"""

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import httpx
import structlog
import uvicorn
import uvloop
from anyio import to_thread
from litestar import Litestar, put
from litestar.datastructures import UploadFile
from litestar.params import MultipartBody
from PIL import Image
from sqlalchemy import func, select

from benchmarks.accounts_handler import OURS, effects, fails
from benchmarks.people import percentile
from benchmarks.wire import free_port, login
from nebengjek.app import App
from nebengjek.bus.messaging import RETRY_DELAYS
from nebengjek.contracts.users import UserCreated, UserUpdated
from nebengjek_plugins.profiles.tables import found, people, signups
from tests.flows.world import World, running, settings_for
from tests.servers import nats_server, postgres_server, valkey_server


@contextmanager
def stores(backend: str, folder: Path) -> Iterator[dict[str, Any]]:
    if backend == "embedded":
        yield {"database_url": f"sqlite:///{folder}/bench.sqlite3"}
        return
    with nats_server() as nats, valkey_server() as redis, postgres_server() as postgres:
        yield {"database_url": postgres.new_database(), "nats__url": nats.fresh_account(), "redis__url": redis}


@asynccontextmanager
async def bare(folder: Path) -> AsyncIterator[str]:
    """The peer's address."""

    @put("/picture", status_code=202)
    async def take(data: MultipartBody[dict[str, UploadFile]]) -> dict[str, int]:
        (file,) = data.values()
        content = await file.read()
        await to_thread.run_sync((folder / f"{time.perf_counter_ns()}.jpg").write_bytes, content)
        return {"version": 1}

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Litestar([take]), port=port, log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


async def until(there: Callable[[], Awaitable[bool]], seconds: float = 600) -> None:
    async with asyncio.timeout(seconds):
        while not await there():  # noqa: ASYNC110 - what is waited for is in stores
            await asyncio.sleep(0.05)


class Stalls:
    """``longest``: milliseconds for which the event loop did nothing else, inside ``async with``."""

    longest = 0.0

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            self.longest = max(self.longest, (time.perf_counter() - began - 0.002) * 1000)


def photo() -> bytes:
    """1,600 x 1,200 pixels, as soft as most photographs are."""
    out = BytesIO()
    Image.effect_noise((200, 150), 90).resize((1600, 1200), Image.Resampling.BICUBIC).convert("RGB").save(
        out, "JPEG", quality=85
    )
    return out.getvalue()


async def uploads(send: Callable[[], Awaitable[httpx.Response]], count: int) -> list[float]:
    """Milliseconds to each answer, one upload after the other."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        (await send()).raise_for_status()
        took.append((time.perf_counter() - began) * 1000)
    return took


async def settled(world: World) -> None:
    async def quiet() -> bool:
        return (await world._said_and_waiting())[1] == 0

    await until(quiet)


async def pictures(world: World, folder: Path, count: int) -> None:
    data = photo()
    _, token = await login(world.http, 1)
    headers = {"Authorization": f"Bearer {token}"}

    async def to_us() -> httpx.Response:
        return await world.http.put("/users/me/avatar", files={"file": ("me.jpg", data)}, headers=headers)

    ours = await uploads(to_us, count)
    await settled(world)
    async with bare(folder) as url, httpx.AsyncClient(base_url=url) as http:
        theirs = await uploads(lambda: http.put("/picture", files={"file": ("me.jpg", data)}), count)
    for name, took in (("upload -> 202", ours), ("a bare handler", theirs)):
        print(f"{name}: p50 {percentile(took, 0.5):.1f} ms, longest {max(took):.1f} ms ({len(data):,} bytes)")

    people = [await login(world.http, 10 + number) for number in range(count)]

    async def one(token: str) -> None:
        bearer = {"Authorization": f"Bearer {token}"}
        answer = await world.http.put("/users/me/avatar", files={"file": ("me.jpg", data)}, headers=bearer, timeout=120)
        answer.raise_for_status()

    began, cpu = time.perf_counter(), time.process_time()
    async with Stalls() as stalls:
        await asyncio.gather(*(one(token) for _, token in people))
        await settled(world)
    spent, took_all = time.process_time() - cpu, time.perf_counter() - began
    print(f"{count} pictures at once, original and three thumbnails: {count / spent:.1f} per CPU second,")
    print(f"  {count / took_all:.1f} a second; longest stall of the event loop {stalls.longest:.0f} ms")


async def rebuild(world: World, count: int) -> None:
    for number in range(count):
        await login(world.http, 1_000 + number)
    await settled(world)
    key = {"X-API-Key": world.app.settings.admin.api_key}
    after: str | None = ""
    began, cpu, indexed = time.perf_counter(), time.process_time(), 0
    async with Stalls() as stalls:
        while after is not None:
            where = {"after": after, "limit": "500"}
            answer = await world.http.post("/admin/users/search/rebuild", params=where, headers=key)
            step = answer.raise_for_status().json()
            indexed, after = indexed + step["indexed"], step["next"]
    took, spent = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"search rebuild: {indexed / took:,.0f} accounts a second, {indexed / spent:,.0f} per CPU second ({indexed:,});"
    )
    print(f"  longest stall of the event loop {stalls.longest:.0f} ms")


async def events(world: World, count: int) -> bool:
    """Half as many people, each made and then named; False: an effect is missing, or was there twice."""
    bus, now = world.app.bus, datetime.now(UTC)
    said = [f"{OURS}{number:012d}" for number in range(count // 2)]
    began = time.perf_counter()
    for user_id in said:
        await bus.publish(UserCreated(user_id=user_id, version=1, role="passenger", created_at=now))
        await bus.publish(UserUpdated(user_id=user_id, version=2, role="passenger", full_name="Ani", email=None))
    dead: set[int] = set()

    async def done() -> bool:
        letters = await bus.dead_letters.list()
        for letter in letters:
            dead.add(letter.seq)
            await bus.dead_letters.replay(letter.seq)
        return not letters and (await world._said_and_waiting())[1] == 0

    await until(done)
    took = time.perf_counter() - began
    print(f"{count:,} events of accounts, one of four handlers failing 30 % of the time: all done after {took:.0f} s,")
    retries = fails[True] - len(dead)
    print(f"  {retries:,} retries, after {RETRY_DELAYS} s each, {len(dead)} dead letters put back")
    async with world.app.database.read() as tx:
        rows = {
            table.name: (await tx.execute(select(func.count()).where(table.c.user_id.in_(said), *named))).scalar()
            for table, named in (
                (people, [people.c.full_name == "Ani"]),
                (found, [found.c.words == "ani"]),
                (signups, []),
            )
        }
    once = {(user_id, version) for user_id in said for version in (1, 2)}
    good = effects == dict.fromkeys(once, 1) and set(rows.values()) == {len(said)}
    print(f"  every effect there once: {'yes' if good else 'NO'} (counted {effects.total():,}; rows {rows})")
    return good


async def measure(options: argparse.Namespace, given: dict[str, Any], folder: Path) -> bool:
    table = {"store": str(folder / "pictures"), "uploads_per_hour": 100_000}
    plugins = ["nebengjek_plugins.profiles:profiles", "benchmarks.accounts_handler:failing"]
    database_url = given.pop("database_url")
    settings = settings_for(database_url, plugins=plugins, plugin={"profiles": table}, **given)
    async with running(lambda clock: App(settings, clock=clock, sweeping=False)) as world:
        print(f"{options.backend}, load {os.getloadavg()[0]:.1f}")
        await pictures(world, folder, options.pictures)
        await rebuild(world, options.accounts)
        return await events(world, options.events)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["embedded", "real"], default="embedded")
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--accounts", type=int, default=2000)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.pictures, options.accounts, options.events = 6, 200, 20
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        good = uvloop.run(measure(options, stack.enter_context(stores(options.backend, folder)), folder))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
