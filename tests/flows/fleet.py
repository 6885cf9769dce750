"""Several real processes behind a small load balancer, and phones that come back wherever they are let in.

``Fleet`` starts pods on a real nats-server, Valkey and PostgreSQL; ``Front`` gives each new connection to the next pod
that takes it, and can cut any of them. A ``Traveller`` is a phone that is never told to give up: it connects again with
what it has seen last, and repeats a frame under its id until it is answered.

Over 300 lines because pods, balancer and travellers break and come back together: a test moves all three.
"""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import msgspec
from sqlalchemy import func, select
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from benchmarks.wire import free_port
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.tables import outbox
from nebengjek.clock import ManualClock, SystemClock
from nebengjek.database import Database
from nebengjek.faststate import connect_redis
from nebengjek.realtime.redis_mailbox import RedisMailbox
from tests.conformance.harness import Relay
from tests.flows.conftest import Real
from tests.flows.world import MONAS, Phone, Refused, World, moved

PATIENCE = 60.0
"""Seconds for what has to come, on a machine that has other things to do."""
ACK_WAIT = 2.0
"""Until what a dead pod had in hand comes to another one."""
ASK_AGAIN = 3.0
"""Seconds after which a phone repeats a frame that was not answered."""
APART = 1000.0
"""Metres between two pairs: more than any driver is looked for."""


class Pod:
    """A process on a port of its own, which stays when it is started again."""

    def __init__(self, pod_id: str, env: dict[str, str], log: Path, modules: str | None = None) -> None:
        self.pod_id = pod_id
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._env = env
        self._command = [sys.executable, "-m", "nebengjek", "run", "--port", str(self.port)]
        self._command += ["--modules", modules] if modules else []
        self.process: subprocess.Popen[bytes] | None = None
        self.clock = ManualClock()
        self.http = httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, verify=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            env = {**os.environ, **self._env, "NATS_CLIENT_ID": self.pod_id}
            self.process = subprocess.Popen(self._command, env=env, stdout=log, stderr=log)

    async def ready(self) -> None:
        """Wait until it is."""
        assert self.process is not None
        async with asyncio.timeout(3 * PATIENCE):
            while True:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                with suppress(httpx.TransportError):
                    if (await self.http.get("/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """-9: it says nothing any more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def end(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, PATIENCE)


class Front:
    """Listens on ``url``; each connection goes to the next of ``pods``, or to the one after it if that is away."""

    def __init__(self, pods: Sequence[Pod]) -> None:
        self.pods = pods
        self.url = ""
        self._next = 0
        self._lines: dict[int, list[asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        for port in list(self._lines):
            self.cut(port)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self, port: int) -> None:
        """The connection that came from this port of the phone ends, without a word to either side."""
        for writer in self._lines.pop(port, ()):
            cast(asyncio.Transport, writer.transport).abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        port: int = writer.get_extra_info("peername")[1]
        try:
            behind = await self._pod()
            if behind is None:
                return
            self._lines[port] = [writer, behind[1]]
            try:
                await asyncio.gather(_pump(reader, behind[1]), _pump(behind[0], writer))
            finally:
                behind[1].close()
        finally:
            self._lines.pop(port, None)
            writer.close()

    async def _pod(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.pods:
            pod = self.pods[self._next % len(self.pods)]
            self._next += 1
            if pod.process is not None:
                with suppress(OSError):
                    return await asyncio.open_connection("127.0.0.1", pod.port)
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        # Half of it is over, and for a phone that is all of it.
        writer.close()


async def _over(line: Relay, url: str) -> str:
    """The URL of what is behind the line, by way of it."""
    await line.open()
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{line.port}")))


class Fleet:
    """As much of a world as a phone needs, and the pods. The lines between them and NATS and Redis can be closed."""

    def __init__(self, given: dict[str, Any], folder: Path, modules: Sequence[str | None], **env: str) -> None:
        self.nats_line = Relay(urlsplit(given["nats__url"]).port or 0)
        self.redis_line = Relay(urlsplit(given["redis__url"]).port or 0)
        self._given = given
        self.env = {
            "DATABASE_URL": given["database_url"],
            "NEBENGJEK__PROFILE": "test",
            "NEBENGJEK__AUTH__OTP_DEBUG": "true",
            "NEBENGJEK__LOCATION__MAX_SPEED_KMH": "2000",
            "NEBENGJEK__MATCH__RADIUS_KM": "0.4",
            "NEBENGJEK__MATCH__OFFER_TTL": "300",
            "NEBENGJEK__NATS__ACK_WAIT": str(ACK_WAIT),
            "NEBENGJEK__WEB__FRAMES_PER_SECOND": "10000",
            "NEBENGJEK__WEB__FRAME_BURST": "10000",
            "NEBENGJEK__WEB__COMMANDS_PER_SECOND": "10000",
            **env,
        }
        self.pods = [Pod(f"pod-{n}", self.env, folder / f"pod-{n}.log", only) for n, only in enumerate(modules, 1)]
        # Phones go where phones are served.
        self.front = Front([pod for pod, only in zip(self.pods, modules, strict=True) if not only or "users" in only])
        self.clock = ManualClock()
        self._places = itertools.count()
        self.http = httpx.AsyncClient()
        self.database = Database(given["database_url"])
        self.redis = connect_redis(given["redis__url"])
        self.broker = JetStreamBroker(given["nats__url"], name="looks on")

    @property
    def url(self) -> str:
        return self.front.url

    def pod(self, pod_id: str) -> Pod:
        return next(pod for pod in self.pods if pod.pod_id == pod_id)

    async def start(self, begin: int | None = None) -> None:
        """The first ``begin`` pods, default all; the front gives nobody to one that does not run."""
        self.env["NATS_URL"] = await _over(self.nats_line, self._given["nats__url"])
        self.env["REDIS_URL"] = await _over(self.redis_line, self._given["redis__url"])
        for pod in self.pods[:begin]:
            pod.start()
        for pod in self.pods[:begin]:
            await pod.ready()
        await self.front.open()
        self.http = httpx.AsyncClient(base_url=self.front.url, timeout=PATIENCE, verify=False)
        await self.broker.connect()

    async def stop(self) -> None:
        await self.front.close()
        for pod in self.pods:
            pod.kill()
            await pod.http.aclose()
        await self.nats_line.close()
        await self.redis_line.close()
        await self.http.aclose()
        await self.broker.close()
        await self.redis.aclose()
        await self.database.close()

    async def restart(self, pod: Pod) -> None:
        pod.start()
        await pod.ready()

    async def quiet(self) -> None:
        """Wait until every event that was said has been handled by whoever hears it, and what they said, too."""
        seen: tuple[int, int] | None = None
        async with asyncio.timeout(PATIENCE):
            # Twice the same: between two looks a handler may have said something that was in neither place.
            while (now := await self._said_and_waiting()) != seen or now[1]:
                seen = now
                await asyncio.sleep(0.1)

    async def _said_and_waiting(self) -> tuple[int, int]:
        """How many events were ever published, and how many wait in the outbox or for a consumer."""
        async with self.database.read() as tx:
            waiting = int((await tx.execute(select(func.count()).select_from(outbox))).scalar_one())
        streams = await self.broker.streams()
        for stream in streams:
            for one in await self.broker.consumers(stream.spec.name):
                waiting += one.num_pending + one.num_ack_pending
        return sum(stream.last_seq for stream in streams), waiting

    async def tally(self, pairs: Iterable["Pair"]) -> "Tally":
        """When all has been said: what the phones heard of what they must not miss."""
        await self.quiet()
        tally = Tally()
        mailbox = RedisMailbox(self.redis, SystemClock())
        for phone in (phone for pair in pairs for phone in pair.both):
            head = await mailbox.head(phone.user_id)
            assert (phone.epoch, set(phone.replays) - {"complete"}) == (head.epoch, set())
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await phone.has(head.last_seq)
            tally.add(phone, head.last_seq)
        return tally

    async def people(self, pairs: int) -> list["Pair"]:
        """So many drivers and passengers, each pair far from all others, all connected through the front."""
        places = [moved(MONAS, east_m=APART * next(self._places)) for _ in range(pairs)]
        made = [Pair(Traveller(self), Traveller(self), place) for place in places]

        async def come(pair: Pair) -> None:
            await (await pair.driver.login()).become_driver()
            await pair.passenger.login()
            pair.driver.travel()
            pair.passenger.travel()

        for pair in made:
            await come(pair)
        return made


@asynccontextmanager
async def fleet(
    real: Real,
    folder: Path,
    modules: Sequence[str | None] = (None, None, None),
    *,
    begin: int | None = None,
    **env: str,
) -> AsyncIterator[Fleet]:
    """``modules``: of each pod, None = all. The servers are the session's, what is in them is new."""
    made = Fleet(await real.fresh(), folder, modules, **env)
    try:
        await made.start(begin)
        yield made
    finally:
        await made.stop()


class Traveller(Phone):
    """A phone that connects again as often as it must, and keeps every frame it ever got."""

    def __init__(self, world: Any) -> None:
        super().__init__(cast(World, world))
        self.epoch = ""
        self.last_seq = 0
        self.connections = 0
        self.replays: list[str] = []
        self.ready: dict[str, Any] = {}
        self.home: Pod | None = None
        self._life: asyncio.Task[None] | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._left: list[ClientConnection] = []
        self._up = asyncio.Event()

    # -- HTTP, over whichever pod answers

    async def http(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> httpx.Response:
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    response = await super().http(method, path, body, token=token)
                    if response.status_code != 503:
                        return response
                await asyncio.sleep(0.05)

    # -- socket

    def twin(self) -> "Traveller":
        """Another phone of the same user, with the same token."""
        other = Traveller(self.world)
        other.user_id, other.token = self.user_id, self.token
        return other

    def travel(self) -> None:
        """From now on connected, but for the moments when it is not."""
        self._life = asyncio.create_task(self._keep_connected(), name=f"phone {self.msisdn}")

    async def go_home(self) -> None:
        """Hang up for good."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait((self._life,))
            self._life = None
        for socket in self._left:
            socket.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_home()

    async def lives_on(self, pod: Pod | None) -> None:
        """From now on it connects to this pod only; None = to whichever it is given."""
        self.home = pod
        async with asyncio.timeout(PATIENCE):
            await self._up.wait()
            while pod is not None and self.ready["pod_id"] != pod.pod_id:
                self.drop()
                await self._up.wait()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    @property
    def port(self) -> int:
        """Of its end of the line."""
        assert self._socket is not None
        return int(self._socket.local_address[1])

    def drop(self) -> None:
        """The line is cut, where it is, without a word to either side."""
        self._up.clear()
        if self._socket is not None:
            self._socket.transport.abort()
            self._socket = None

    def vanish(self, seconds: float) -> None:
        """It comes back over another line; the old one stays for so long, and nobody reads it."""
        self._up.clear()
        socket, self._socket = self._socket, None
        if socket is not None and self._hearing is not None:
            self._left.append(socket)
            asyncio.get_running_loop().call_later(seconds, socket.transport.abort)
            self._hearing.cancel()

    async def _keep_connected(self) -> None:
        while True:
            query = f"?epoch={self.epoch}&last_seq={self.last_seq}" if self.epoch else ""
            url = (self.home or self.world).url.replace("http", "ws") + "/ws" + query
            with suppress(OSError, InvalidHandshake, InvalidMessage, ConnectionClosed, EOFError, TimeoutError):
                socket = await connect(
                    url,
                    additional_headers=self.bearer,
                    compression=None,
                    max_size=None,
                    # To look for one in the environment costs more than all the rest.
                    proxy=None,
                    # All phones live in one process, which can be busier than a phone: none begins anew for that.
                    open_timeout=PATIENCE,
                    close_timeout=1,
                    ping_interval=None,
                )
                self._hearing = asyncio.create_task(self._hear(socket, asked=bool(query)))
                try:
                    await asyncio.wait((self._hearing,))
                finally:
                    self._hearing.cancel()
                    if socket not in self._left:
                        await socket.close()
            await asyncio.sleep(0.02)

    async def _hear(self, socket: ClientConnection, *, asked: bool) -> None:
        try:
            async for text in socket:
                frame = msgspec.json.decode(text)
                if frame["event"] == "session.ready":
                    self._arrived(socket, frame["data"], asked=asked)
                # No wait between the two: what was heard is known to have been heard.
                self.frames.append(frame)
                self.last_seq = frame.get("seq", self.last_seq)
                async with self._news:
                    self._news.notify_all()
        except ConnectionClosed:
            pass
        finally:
            if self._socket is socket:
                self._up.clear()
                self._socket = None

    def _arrived(self, socket: ClientConnection, ready: dict[str, Any], *, asked: bool) -> None:
        self.ready = ready
        self.connections += 1
        if asked:
            self.replays.append(ready["replay"])
        if not asked or ready["replay"] == "reset":
            self.last_seq = ready["last_seq"]
        self.epoch = ready["epoch"]
        self._socket = socket
        self._up.set()

    async def tell(self, event: str, data: Any, frame_id: str | None = None) -> None:
        await self._up.wait()
        with suppress(AssertionError, ConnectionClosed):
            await super().tell(event, data, frame_id)

    async def say(self, event: str, data: Any, frame_id: str | None = None) -> dict[str, Any]:
        """The data of the ack, however often it has to be asked for; raises Refused, but not for UNAVAILABLE."""
        frame_id = frame_id or str(uuid4())
        seen = len(self.frames)
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            connection = self.connections
            await self.tell(event, data, frame_id)
            answer = await self._answer(frame_id, seen, connection)
            if answer is None:
                continue
            if answer["event"] == "ack":
                return cast(dict[str, Any], answer["data"])
            if answer["data"]["code"] != "UNAVAILABLE":
                raise Refused(answer["data"]["code"], answer["data"]["message"])
            seen = len(self.frames)
            await asyncio.sleep(0.2)
        raise AssertionError(f"{event} was not answered: {_short(self.frames[seen:])}")

    async def _answer(self, frame_id: str, since: int, connection: int) -> dict[str, Any] | None:
        """None: the connection is another one by now, or it takes too long."""
        looked = since
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_AGAIN), self._news:
                while True:
                    for frame in self.frames[looked:]:
                        if frame["event"] in ("ack", "error") and frame["data"].get("id") == frame_id:
                            return frame
                    looked = len(self.frames)
                    if self.connections != connection:
                        return None
                    await self._news.wait()
        return None

    async def find(self, wanted: Callable[[dict[str, Any]], bool], *, since: int = 0) -> dict[str, Any]:
        looked = since
        try:
            async with asyncio.timeout(PATIENCE), self._news:
                while True:
                    for frame in self.frames[looked:]:
                        if wanted(frame):
                            return frame
                    looked = len(self.frames)
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{self.user_id} was not told, only\n{_short(self.frames[since:])}") from None

    # -- what it has heard

    async def has(self, seq: int) -> None:
        """Wait until it has the frame of this number."""
        async with self._news:
            await self._news.wait_for(lambda: self.last_seq >= seq)

    @property
    def durable(self) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if "seq" in frame]


def _short(frames: list[dict[str, Any]]) -> str:
    """For whoever reads why a test failed."""
    told = ("replay", "pod_id", "id", "code", "message", "match_id", "match_status", "ride_id", "status", "reason")

    def line(frame: dict[str, Any]) -> str:
        data = {key: frame["data"][key] for key in told if key in frame["data"]}
        return f"{frame.get('seq', '-')} {frame['event']} {data}"

    return "\n".join(
        line(frame) for frame in frames[-40:] if frame["event"] not in ("location.stored", "ride.tracking")
    )


class Tally:
    """Of durable frames: how many phones did not get, got twice, or got after a later one."""

    def __init__(self) -> None:
        self.lost = self.doubled = self.reordered = self.frames = 0

    def add(self, phone: Traveller, last_seq: int) -> None:
        """``last_seq``: where the phone's mailbox stands."""
        seqs = [frame["seq"] for frame in phone.durable]
        self.frames += len(seqs)
        self.lost += len(set(range(1, last_seq + 1)) - set(seqs))
        self.doubled += len(seqs) - len(set(seqs))
        self.reordered += sum(1 for before, after in pairwise(seqs) if after < before)

    def __str__(self) -> str:
        return f"lost {self.lost}, doubled {self.doubled}, reordered {self.reordered} of {self.frames} frames"


class Pair:
    """A driver and a passenger, and where they meet; ``ride`` takes them through whole rides, one after the other."""

    def __init__(self, driver: Traveller, passenger: Traveller, place: dict[str, float]) -> None:
        self.driver = driver
        self.passenger = passenger
        self.place = place
        self.rides: list[str] = []
        self.match_id = self.ride_id = ""
        self.bill: dict[str, Any] = {}
        self._north = 0.0
        self._time = datetime.now(UTC)
        self._seen = 0

    @property
    def both(self) -> tuple[Traveller, Traveller]:
        return self.driver, self.passenger

    async def go_home(self) -> None:
        for phone in self.both:
            await phone.go_home()

    def here(self) -> dict[str, Any]:
        """Where they are; by their clocks they drive 40 m in a tenth of a second, and no faster."""
        self._time = max(datetime.now(UTC), self._time + timedelta(seconds=0.1))
        return moved(self.place, self._north) | {"timestamp": self._time.isoformat()}

    # -- the steps of a ride: what a phone says, and what has to come of it

    async def beacon(self) -> None:
        await self.driver.say("user.beacon", {"is_active": True, "location": self.here()})

    async def finder(self) -> None:
        target = moved(self.place, self._north + 2000)
        self._seen = len(self.passenger.frames)
        await self.passenger.say("user.finder", {"is_active": True, "location": self.here(), "target_location": target})

    async def found(self) -> None:
        found = await self.passenger.find(lambda frame: frame["event"] == "match.found", since=self._seen)
        self.match_id = found["data"]["match_id"]
        await self.driver.expect("match.found", match_id=self.match_id)

    async def accept(self, phone: Traveller) -> None:
        await phone.say("match.accept", {"match_id": self.match_id})

    async def picked_up(self) -> None:
        for phone in self.both:
            self.ride_id = (await phone.expect("ride.pickup", match_id=self.match_id))["data"]["ride_id"]

    async def point(self, phone: Traveller) -> None:
        await phone.say("location.update", {"location": self.here()})

    async def start(self) -> None:
        await self.driver.say("ride.start", {"ride_id": self.ride_id})

    async def drive(self, points: int, metres: float = 40.0) -> None:
        """A point each ``metres``, as fast as they are stored."""
        for _ in range(points):
            self._north += metres
            await self.point(self.driver)

    async def arrive(self) -> None:
        self.bill = await self.driver.say("ride.arrive", {"ride_id": self.ride_id})

    async def pay(self) -> None:
        amount = self.bill["adjusted_cost"]
        await self.passenger.say("ride.pay", {"ride_id": self.ride_id, "amount": amount})

    async def over(self) -> None:
        for phone in self.both:
            await phone.expect("ride.completed", ride_id=self.ride_id)
        self.rides.append(self.ride_id)

    async def ride(
        self,
        points: int = 5,
        between: Callable[[], Awaitable[None]] | None = None,
        *,
        begin: str = "beacon",
        before: str | None = None,
    ) -> None:
        """All of it, or from one step on, or up to another; ``between`` is awaited after every step."""
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "beacon": self.beacon,
            "finder": self.finder,
            "found": self.found,
            "driver accepts": lambda: self.accept(self.driver),
            "passenger accepts": lambda: self.accept(self.passenger),
            "picked up": self.picked_up,
            "driver is there": lambda: self.point(self.driver),
            "passenger is there": lambda: self.point(self.passenger),
            "start": self.start,
            "drive": lambda: self.drive(points),
            "passenger drives": lambda: self.point(self.passenger),
            "arrive": self.arrive,
            "pay": self.pay,
            "over": self.over,
        }
        names = list(steps)
        for name in names[names.index(begin) : names.index(before) if before else None]:
            await steps[name]()
            if between is not None:
                await between()
