"""(d) Thousands of phones on one process: what one costs, how soon it hears, how it comes back.

Every figure beside its peer, in the same run: the bare ASGI application of benchmarks.echo, which holds the same
sockets and answers the same frames on the same server. ``--pods``: delivery on and across two pods on real servers, and
nothing else; ``--deflate``: memory with permessage-deflate. Over 300 lines because each figure needs its own phones.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvloop
from sqlalchemy import insert

from benchmarks.location import FRAME, PATIENCE, idle
from benchmarks.people import percentile
from benchmarks.wire import Child, RawSocket, child, client_frame, free_port, nebengjek, open_socket
from nebengjek import schema
from nebengjek.clock import SystemClock
from nebengjek.contracts.message import uuid7
from nebengjek.database import Database
from nebengjek.settings import DEVELOPMENT_SECRET
from nebengjek.tokens import Tokens
from nebengjek.users import store
from tests.servers import nats_server, postgres_server, valkey_server

PING_SECONDS = 4.0
WARM = 50
AT_ONCE = 64
WINDOW = 16
GOAL_KB = 25.0
OFF = {"event": "user.finder", "data": {"is_active": False}}
"""A command whose answer is a durable frame for every socket of its user."""


@dataclass
class Kind:
    """What is measured: a server, how a phone of it is greeted, and the answer to a point."""

    name: str
    server: Child
    tokens: list[str]
    greeting: bytes
    stored: bytes


class Line:
    """One socket: counts the frames that it hears, and waits for one that holds some bytes."""

    def __init__(self, token: str, *, deflate: bool = False) -> None:
        self.token = token
        self._deflate = deflate
        self.heard = 0
        self.query = ""
        self.on_frame: Callable[[bytes], None] | None = None
        self._wanted: tuple[bytes, asyncio.Future[bytes]] | None = None
        self._socket: RawSocket | None = None

    async def connect(self, kind: Kind, server: Child | None = None, *, receive_buffer: int | None = None) -> float:
        """Seconds until the phone is greeted: ours says ``session.ready``, the bare server answers a first frame."""
        began = time.perf_counter()
        greeting = self.expect(kind.greeting)
        port, path = (server or kind.server).port, f"/ws{self.query}"
        self._socket = await open_socket(
            port, path, self.token, self._text, receive_buffer=receive_buffer, deflate=self._deflate
        )
        if kind.greeting == kind.stored:
            self._socket.send(FRAME)
        text = await asyncio.wait_for(greeting, PATIENCE)
        if kind.greeting != kind.stored:
            ready = json.loads(text)["data"]
            self.query = f"?epoch={ready['epoch']}&last_seq={ready['last_seq']}"
        return time.perf_counter() - began

    def _text(self, _: RawSocket, text: bytes) -> None:
        self.heard += 1
        if self._wanted is not None and self._wanted[0] in text:
            future, self._wanted = self._wanted[1], None
            if not future.done():
                future.set_result(text)
        if self.on_frame is not None:
            self.on_frame(text)

    def expect(self, wanted: bytes) -> "asyncio.Future[bytes]":
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wanted = (wanted, future)
        return future

    @property
    def waits(self) -> bool:
        return self._wanted is not None

    def send(self, frame: bytes) -> None:
        assert self._socket is not None
        self._socket.send(frame)

    @property
    def _transport(self) -> asyncio.Transport:
        assert self._socket is not None
        assert self._socket.transport is not None
        return self._socket.transport

    def drop(self) -> None:
        """As a tunnel does: without a word."""
        self._transport.abort()

    def look_away(self) -> None:
        """Read nothing any more."""
        self._transport.pause_reading()

    def look_back(self) -> None:
        self._transport.resume_reading()


async def settle(database_url: str, count: int) -> list[str]:
    """Passengers, without the codes that logins cost; their tokens."""
    database = Database(database_url)
    await schema.upgrade(database)
    clock = SystemClock()
    tokens = Tokens(DEVELOPMENT_SECRET, lifetime=86400, clock=clock)
    now = clock.now()
    rows = [
        {
            "id": uuid7(),
            "msisdn": f"+62811{10_000_000 + number}",
            "role": "passenger",
            "version": 1,
            "online": False,
            "beacon_active": False,
            "finder_active": False,
            "finder_version": 0,
            "created_at": now,
            "updated_at": now,
        }
        for number in range(count)
    ]
    for start in range(0, count, 500):
        async with database.begin() as tx:
            await tx.execute(insert(store.users), rows[start : start + 500])
    await database.close()
    return [tokens.issue(str(row["id"]), "passenger", uuid7())[0] for row in rows]


async def all_at_once(calls: Sequence[Callable[[], Awaitable[float]]], limit: int) -> list[float]:
    turns = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[float]]) -> float:
        async with turns:
            return await call()

    return list(await asyncio.gather(*(one(call) for call in calls)))


# -- holding them


@dataclass
class Held:
    kb: float
    share: float
    latency: list[float]
    points: float
    lines: list[Line]


async def hold(kind: Kind, seconds: float, *, deflate: bool = False) -> Held:
    """Connect everybody; a point of each every four seconds, evenly spread."""
    lines = [Line(token, deflate=deflate) for token in kind.tokens]
    warm = lines[:WARM]
    await all_at_once([lambda line=line: line.connect(kind) for line in warm], AT_ONCE)  # type: ignore[misc]
    await ping(kind, warm, 2.0, 0.2)
    before = kind.server.rss_kb()
    began = time.perf_counter()
    await all_at_once([lambda line=line: line.connect(kind) for line in lines[WARM:]], AT_ONCE)  # type: ignore[misc]
    print(f"  {kind.name}: {len(lines)} connected in {time.perf_counter() - began:.0f} s", flush=True)
    await idle(kind.server)
    # Everybody once, so that what a point leaves behind is there; then what counts.
    await ping(kind, lines, PING_SECONDS, PING_SECONDS)
    spent, points, latency = await ping(kind, lines, seconds, PING_SECONDS)
    used = (kind.server.rss_kb() - before) / (len(lines) - WARM)
    return Held(used, spent, latency, points, lines)


async def ping(kind: Kind, lines: list[Line], seconds: float, every: float) -> tuple[float, float, list[float]]:
    """(share of a core that the server took, points a second, milliseconds to the answers)."""
    latency: list[float] = []
    waiting = skipped = 0

    def answered(line: Line, sent: float) -> Callable[[object], None]:
        def done(_: object) -> None:
            nonlocal waiting
            waiting -= 1
            latency.append((time.perf_counter() - sent) * 1000)

        return done

    began, cpu, number = time.perf_counter(), kind.server.cpu(), 0
    while (passed := time.perf_counter() - began) < seconds:
        due = int(passed / every * len(lines))
        while number < due:
            line = lines[number % len(lines)]
            number += 1
            if line.waits:
                skipped += 1
                continue
            waiting += 1
            line.expect(kind.stored).add_done_callback(answered(line, time.perf_counter()))
            line.send(FRAME)
        await asyncio.sleep(0.005)
    wall, spent = time.perf_counter() - began, kind.server.cpu() - cpu
    async with asyncio.timeout(PATIENCE):
        while waiting:  # noqa: ASYNC110 - the answers that are still on their way
            await asyncio.sleep(0.01)
    if skipped:
        print(
            f"  {kind.name}: {skipped} of {number} points were not sent, the answer to the last one was still to come"
        )
    return spent / wall, (number - skipped) / wall, latency


# -- coming back


async def storm(kind: Kind, lines: list[Line]) -> tuple[float, list[float]]:
    """(seconds until all are back, seconds of each)."""
    for line in lines:
        line.drop()
    await idle(kind.server)
    began = time.perf_counter()
    each = await all_at_once([lambda line=line: line.connect(kind) for line in lines], len(lines))  # type: ignore[misc]
    return time.perf_counter() - began, each


async def resume(kind: Kind, lines: list[Line], frames: int) -> list[float]:
    """Milliseconds from the first byte of a reconnect to the last of ``frames`` that were missed."""
    for line in lines:
        line.drop()
    # A connection each: one that is kept may be closed by a busy server just when it is used again.
    url, limits = f"http://127.0.0.1:{kind.server.port}", httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http:

        async def miss(line: Line) -> float:
            headers = {"Authorization": f"Bearer {line.token}"}
            for _ in range(frames):
                (await http.put("/finder", json=OFF["data"], headers=headers)).raise_for_status()
            return 0.0

        await all_at_once([lambda line=line: miss(line) for line in lines], 8)  # type: ignore[misc]
    await idle(kind.server)
    took = []
    for line in lines:
        last = int(line.query.rpartition("=")[2]) + frames
        everything = asyncio.get_running_loop().create_future()

        def seen(text: bytes, mark: bytes = b'"seq":%d}' % last, end: "asyncio.Future[None]" = everything) -> None:
            if text.endswith(mark):
                end.set_result(None)

        line.on_frame = seen
        began = time.perf_counter()
        await line.connect(kind)
        await asyncio.wait_for(everything, PATIENCE)
        took.append((time.perf_counter() - began) * 1000)
        line.on_frame = None
    return took


async def reconnects(kind: Kind, lines: list[Line]) -> list[float]:
    """Milliseconds, one after the other."""
    for line in lines:
        line.drop()
    return [1000 * await line.connect(kind) for line in lines]


# -- hearing


async def delivery(kind: Kind, tokens: list[str], samples: int, other: Child | None = None) -> list[list[float]]:
    """Milliseconds from a frame of one phone to its user's other phone: durable frames, and points.

    The other phone is on the same pod, or on ``other``. Of the bare server: to the echo.
    """
    bare = kind.greeting == kind.stored
    took: list[list[float]] = [[], []]
    for token in tokens:
        one, twin = Line(token), Line(token)
        await one.connect(kind)
        await twin.connect(kind, other)
        for frame, answer, times in (
            (client_frame(json.dumps(OFF).encode()), b'"user.finder"', took[0]),
            (FRAME, kind.stored, took[1]),
        ):
            for _ in range(samples // len(tokens)):
                heard = (one if bare else twin).expect(answer)
                began = time.perf_counter()
                one.send(frame)
                await asyncio.wait_for(heard, PATIENCE)
                times.append((time.perf_counter() - began) * 1000)
        one.drop()
        twin.drop()
    return took


@dataclass
class Tracking:
    """Points a second of wall time and of CPU; of those of one user, how many there were and how many were shown."""

    points: float
    per_cpu: float
    of_one: float
    shown: float


async def tracking(kind: Kind, tokens: list[str], seconds: float, *, reading: bool) -> Tracking:
    """Every user sends points as fast as they are acked, sixteen at a time; a second phone of his is shown them.

    The second phone reads at once, or only when all is over.
    """
    acked, running, number = 0, True, 0
    listeners: list[Line] = []
    bare = kind.greeting == kind.stored

    def point() -> bytes:
        nonlocal number
        number += 1
        return client_frame(
            b'{"event":"location.update","id":"%d","data":{"location":{"latitude":-6.1754,"longitude":106.8272}}}'
            % number
        )

    def pumping(line: Line) -> Callable[[bytes], None]:
        def heard(text: bytes) -> None:
            nonlocal acked
            if text.startswith(b'{"event":"location.update"' if bare else b'{"event":"ack"'):
                acked += 1
                if running:
                    line.send(point())

        return heard

    senders = [Line(token) for token in tokens]
    for line in senders:
        await line.connect(kind)
        line.on_frame = pumping(line)
        if not bare:
            listeners.append(Line(line.token))
            await listeners[-1].connect(kind, receive_buffer=None if reading else 4096)
    await idle(kind.server)
    for line in listeners if not reading else ():
        line.look_away()
    shown = sum(one.heard for one in listeners)
    for line in senders:
        for _ in range(WINDOW):
            line.send(point())
    # Warm-up: the first points of every phone fill caches and are not counted.
    await asyncio.sleep(1.0)
    began, cpu, count = time.perf_counter(), kind.server.cpu(), acked
    # The window that is measured.
    await asyncio.sleep(seconds)
    wall, spent = time.perf_counter() - began, kind.server.cpu() - cpu
    points = acked - count
    running = False
    await idle(kind.server)
    for line in listeners if not reading else ():
        line.look_back()
    await idle(kind.server)
    told = sum(one.heard for one in listeners) - shown
    for line in [*senders, *listeners]:
        line.drop()
    await idle(kind.server)
    return Tracking(points / wall, points / spent, acked / len(senders), told / len(senders))


# -- one run


@dataclass
class Sizes:
    sockets: int
    seconds: float
    storm: int
    samples: int
    resumes: int
    missed: int
    trackers: int


@dataclass
class Figures:
    held: Held
    storm: tuple[float, list[float]]
    resume: list[float]
    delivery: list[list[float]]
    tracking: Tracking
    not_reading: Tracking


async def measure(kind: Kind, sizes: Sizes) -> Figures:
    few = kind.tokens[:10]
    heard = await delivery(kind, few, sizes.samples)
    trackers, seconds = kind.tokens[: sizes.trackers], min(sizes.seconds, 8.0)
    tracked = await tracking(kind, trackers, seconds, reading=True)
    unread = await tracking(kind, trackers, seconds, reading=False)
    held = await hold(kind, sizes.seconds)
    stormed = await storm(kind, held.lines[: sizes.storm])
    back = held.lines[: sizes.resumes]
    bare = kind.greeting == kind.stored
    resumed = await (reconnects(kind, back) if bare else resume(kind, back, sizes.missed))
    for line in held.lines:
        line.drop()
    return Figures(held, stormed, resumed, heard, tracked, unread)


def bare_server(count: int) -> Iterator[Kind]:
    port = free_port()
    with child([sys.executable, "-m", "benchmarks.echo", str(port)], port, ready=None) as server:
        yield Kind("bare server", server, ["none"] * count, b"location.update", b"location.update")


def embedded(count: int) -> Iterator[Kind]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'phones.sqlite3'}"
        tokens = uvloop.run(settle(url, count))
        with nebengjek(DATABASE_URL=url) as server:
            yield Kind("nebengjek", server, tokens, b"session.ready", b"location.stored")


def two_pods(count: int) -> Iterator[tuple[Kind, Child]]:
    with nats_server() as nats, valkey_server() as redis_url, postgres_server() as postgres:
        url = postgres.new_database()
        tokens = uvloop.run(settle(url, count))
        env = {"NATS_URL": nats.url, "REDIS_URL": redis_url, "DATABASE_URL": url}
        with nebengjek(**env) as one, nebengjek(**env) as other:
            yield Kind("two pods", one, tokens, b"session.ready", b"location.stored"), other


def show(name: str, ours: Sequence[float], bare: Sequence[float], unit: str = "ms") -> None:
    def both(values: Sequence[float]) -> str:
        return f"p50 {percentile([*values], 0.5):.1f} {unit}, p99 {percentile([*values], 0.99):.1f} {unit}"

    print(f"  {name}: {both(ours)}; {'bare server: ' + both(bare) if bare else ''}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--storm", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer phones, shorter")
    parser.add_argument("--pods", action="store_true", help="delivery across two pods on NATS, Valkey, PostgreSQL")
    parser.add_argument("--deflate", action="store_true", help="the memory of 1,000 that offer permessage-deflate")
    options = parser.parse_args()
    sizes = Sizes(options.sockets, options.seconds, options.storm, 500, 50, 100, 100)
    if options.quick:
        sizes = Sizes(400, 2.0, 200, 20, 2, 10, 10)
    if options.pods:
        return pods(sizes)
    if options.deflate:
        return deflated(min(sizes.sockets, 1000))
    with contextlib.contextmanager(embedded)(sizes.sockets) as kind:
        ours = uvloop.run(measure(kind, sizes))
    with contextlib.contextmanager(bare_server)(sizes.sockets) as kind:
        bare = uvloop.run(measure(kind, sizes))
    return report(sizes, ours, bare)


def report(sizes: Sizes, ours: Figures, bare: Figures) -> int:
    over = ours.held.kb - bare.held.kb
    print(f"{sizes.sockets} phones on one process, a point of each every {PING_SECONDS:.0f} s:")
    print(f"  memory a socket: {ours.held.kb:.1f} KB, bare server {bare.held.kb:.1f} KB")
    print(f"    over it {over:.1f} KB (goal {GOAL_KB:.0f})")
    print(
        f"  of one core: {100 * ours.held.share:.0f} % at {ours.held.points:.0f} points a second; "
        f"bare server {100 * bare.held.share:.0f} %, ratio {ours.held.share / bare.held.share:.1f}"
    )
    show("a point to its answer meanwhile", ours.held.latency, bare.held.latency)
    show("within the pod, durable frame to the user's other phone", ours.delivery[0], [])
    show("within the pod, point to the user's other phone", ours.delivery[1], bare.delivery[1])
    peer = bare.tracking
    for name, track in (("phones that read", ours.tracking), ("phones that do not", ours.not_reading)):
        print(
            f"  conflated tracking to {name}: {track.points:.0f} points a second ({track.per_cpu:.0f} per CPU second), "
            f"{track.shown:.0f} of {track.of_one:.0f} of each user shown"
        )
    print(f"    bare server: {peer.points:.0f} echoes a second ({peer.per_cpu:.0f} per CPU second)")
    show(f"resume with {sizes.missed} missed frames", ours.resume, bare.resume)
    back, other = ours.storm, bare.storm
    print(f"  {sizes.storm} reconnect at once: all back after {back[0]:.1f} s; bare server {other[0]:.1f} s")
    show("of which each", back[1], other[1], "s")
    return 0 if over <= GOAL_KB else 1


def deflated(count: int) -> int:
    def kb(made: Callable[[int], Iterator[Kind]]) -> float:
        with contextlib.contextmanager(made)(count) as kind:
            return uvloop.run(hold(kind, 1.0, deflate=True)).kb

    ours, bare = kb(embedded), kb(bare_server)
    print(f"memory a socket that offers permessage-deflate: {ours:.1f} KB, bare server {bare:.1f} KB")
    return 0 if ours - bare <= GOAL_KB else 1


def pods(sizes: Sizes) -> int:
    async def both(kind: Kind, other: Child) -> list[list[float]]:
        few = kind.tokens[:10]
        within = await delivery(kind, few, sizes.samples)
        return within + await delivery(kind, few, sizes.samples, other)

    with contextlib.contextmanager(two_pods)(10) as (kind, other):
        durable, points, durable_across, points_across = uvloop.run(both(kind, other))
    with contextlib.contextmanager(bare_server)(10) as kind:
        echoed = uvloop.run(delivery(kind, kind.tokens, sizes.samples))[1]
    print("two pods on NATS, Valkey and PostgreSQL:")
    show("within a pod, durable frame", durable, [])
    show("across pods, durable frame", durable_across, [])
    show("within a pod, point", points, echoed)
    show("across pods, point", points_across, echoed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
