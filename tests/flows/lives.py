"""A town whose one process may be killed at any moment and starts again; its people repeat what was not answered.

The process is an ``App`` in this loop. Each statement and commit of the database, each publish and acknowledgement has
a moment before it and one after it, and ``Faults`` says which of them is fatal: from then on nothing of the process
reaches database, broker or phones, nothing is drained, its tasks are thrown away. The next life begins on the same
database file and, over NATS, with what the server knows; a broker in memory dies with the process.

Over 300 lines: a process that can die, a socket without a network, a person, and the town around them.
"""

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import msgspec
from litestar import Litestar
from msgspec import structs
from sqlalchemy import event

from nebengjek.app import App
from nebengjek.bus.deliveries import Batch, Consumption, Delivery
from nebengjek.bus.errors import Disconnected
from nebengjek.bus.interface import Broker, Outcome
from nebengjek.bus.jetstream.broker import JetStreamBroker
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messages import Envelope
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec
from nebengjek.bus.testing import BusProbe
from nebengjek.clock import ManualClock
from nebengjek.errors import Conflict
from nebengjek.settings import Settings
from nebengjek.tokens import Identity
from tests.conformance.harness import Relay
from tests.flows.world import WAIT, Refused
from tests.servers import NatsServer

T = TypeVar("T")

PATIENCE = 60
"""Seconds of the town's clock that people wait for what must come."""
ACK_WAIT = 2.0
"""Over NATS: real seconds until what a dead process had in hand comes again; what takes a busy machine longer is taken
for dead, and five times is a dead letter."""

ORDER = (
    *("PENDING", "DRIVER_CONFIRMED", "PASSENGER_CONFIRMED", "REJECTED", "EXPIRED", "ACCEPTED", "FAILED", "CLOSED"),
    *("PICKUP", "ONGOING", "ARRIVED", "CANCELLED", "COMPLETED", "OVER"),
)
"""The states of a match and of a ride; ``OVER``: it ended while nobody could tell how."""

_watching: ContextVar[bool] = ContextVar("watching", default=False)
_numbers = itertools.count(20_000_000)


@contextmanager
def watching() -> Iterator[None]:
    """The test looks: what it reads is no doing of the process."""
    token = _watching.set(True)
    try:
        yield
    finally:
        _watching.reset(token)


# -- a process that can die


class Killed(BaseException):
    """The process is dead. No handler of an ``Exception`` sees it."""


def leave_the_dead(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: what tasks raised because they were killed, nobody needs to know."""
    error = context.get("exception")
    # A connection's task that was thrown away with the process (asyncio of 3.11 asks it how it ended).
    if isinstance(error, asyncio.CancelledError):
        return
    while error is not None and not isinstance(error, (Killed, Disconnected)):
        error = error.__context__
    if error is None:
        loop.default_exception_handler(context)


class Faults:
    """Counts moments over all lives; ``fatal``: the numbers of those at which the process dies, ascending.

    ``at``: it dies at the first moment whose name begins so.
    """

    def __init__(self, fatal: Sequence[int] = (), *, at: str | None = None) -> None:
        self.moments = 0
        self.deaths: list[str] = []
        self._fatal = set(fatal)
        self._at = at

    def kills(self, name: str) -> bool:
        """One moment more; True when it is a fatal one."""
        self.moments += 1
        if self._at is not None and name.startswith(self._at):
            self._at = None
        elif self.moments not in self._fatal:
            return False
        self.deaths.append(f"{self.moments} ({name})")
        return True


class Life:
    """One process, from its start to its death."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.dead = False
        self.on_death: list[Callable[[], None]] = []

    def moment(self, name: str) -> None:
        """Raises Killed: in the fatal moment, and always after it."""
        if not self.dead and not _watching.get() and self._faults.kills(name):
            self.dead = True
            for callback in self.on_death:
                callback()
        if self.dead:
            raise Killed

    def live_on(self, app: App) -> None:
        """Every statement and commit of this application is such a moment."""
        engine = app.database.sync_engine

        def statement(connection: Any, cursor: Any, text: str, *_: Any) -> None:
            self.moment(" ".join(text.split()[:3]))

        event.listen(engine, "before_cursor_execute", statement)
        event.listen(engine, "commit", lambda connection: self.moment("commit"))
        app.database.on_commit(lambda connection: self.moment("committed"))


class MortalDelivery:
    """Settling it is a moment before and one after."""

    def __init__(self, behind: Delivery, life: Life) -> None:
        self.behind = behind
        self._life = life

    def __getattr__(self, name: str) -> Any:
        given = getattr(self.behind, name)
        if name not in ("ack", "nak", "term", "in_progress"):
            return given

        async def settle(*words: Any) -> None:
            self._life.moment(f"{name} of {self.behind.consumer}")
            await given(*words)
            self._life.moment(f"{name} of {self.behind.consumer} sent")

        return settle


class MortalSource(Consumption):
    def __init__(self, behind: Consumption, life: Life) -> None:
        self._behind = behind
        self._life = life

    async def next(self, limit: int) -> Batch:
        batch = await self._behind.next(limit)
        self._life.moment("delivered")
        return Batch([cast(Delivery, MortalDelivery(one, self._life)) for one in batch.messages], batch.status)

    async def close(self) -> None:
        self.is_closed = True
        if not self._life.dead:
            await self._behind.close()

    @property
    def last_pull(self) -> float:
        return self._behind.last_pull


class MortalBroker:
    """A connection whose use is a moment before and one after."""

    submit = Broker.submit

    def __init__(self, behind: Broker, life: Life) -> None:
        self._behind = behind
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def submit_all(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        subjects = ", ".join(envelope.subject.rpartition(".")[0] for envelope in envelopes)
        self._life.moment(f"publish {subjects}")
        outcomes = self._behind.submit_all(envelopes)
        self._life.moment(f"published {subjects}")
        return outcomes

    async def core_publish(self, subject: str, data: bytes, *more: Any, **options: Any) -> None:
        self._life.moment("core publish")
        await self._behind.core_publish(subject, data, *more, **options)

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        wait = ACK_WAIT if self._behind.durable else spec.ack_wait
        return await self._behind.ensure_consumer(stream, structs.replace(spec, ack_wait=wait))

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        source = await self._behind.consume(stream, consumer, prefetch=prefetch, expires=expires)
        return MortalSource(source, self._life)

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        name = f"ack of {deliveries[0].consumer}" if deliveries else "ack of nothing"
        self._life.moment(name)
        await self._behind.ack_all([cast(MortalDelivery, one).behind for one in deliveries])
        self._life.moment(f"{name} sent")


class Wires(ABC):
    """How each life reaches its broker. ``pause``: seconds of the town's clock between two lives."""

    pause: float

    @abstractmethod
    async def lay(self) -> Broker:
        """A connection of a new life."""

    @abstractmethod
    async def cut(self) -> None:
        """Nothing that the last life says arrives any more."""


class InProcess(Wires):
    pause = 0.1

    async def lay(self) -> Broker:
        return MemoryBroker(MemoryServer())

    async def cut(self) -> None:
        """The server is forgotten with the life that had it."""


class OverNats(Wires):
    pause = 6.0
    """Who relayed in the last life holds the lease for some seconds more."""

    def __init__(self, server: NatsServer) -> None:
        self._port = server.port
        self._account = server.fresh_account()

    async def lay(self) -> Broker:
        self._relay = Relay(self._port)
        await self._relay.open()
        self._broker = JetStreamBroker(self._account.replace(str(self._port), str(self._relay.port)), name="town")
        return self._broker

    async def cut(self) -> None:
        await self._relay.close()
        await self._broker.close()


# -- people


class SocketsOnly(App):
    """Phones here talk to the socket's handler itself: no web application is made for each life."""

    def _litestar(self) -> Litestar:
        return Litestar([])


class Line:
    """A phone's socket without a network."""

    def __init__(self, app: App, token: str, heard: Callable[[str], None]) -> None:
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said.put_nowait({"type": "websocket.connect"})
        self._heard = heard
        scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/ws",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
            "subprotocols": [],
            "state": {},
        }
        socket = app.modules[0].routes[2].fn
        self._task = asyncio.create_task(socket(scope, self._said.get, self._send), name="phone's line")

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            self._heard(message["text"])

    def say(self, text: str) -> None:
        self._said.put_nowait({"type": "websocket.receive", "text": text})


class Phone:
    """One person; ``matches`` and ``rides``: how far each has come, as far as he was told."""

    def __init__(self, town: "Town") -> None:
        self._town = town
        self._msisdn = f"+62811{next(_numbers)}"
        self.user_id = ""
        self.token = ""
        self.frames: list[dict[str, Any]] = []
        self.matches: dict[str, str] = {}
        self.rides: dict[str, str] = {}
        self._line: Line | None = None
        self._news = asyncio.Event()

    # What the routes of users do, without HTTP.

    async def login(self) -> None:
        login = await self._town.app.modules[0].routes[0].accounts.login(self._msisdn)
        self.user_id, self.token = login.user_id, login.token

    async def become_driver(self, plate: str) -> None:
        identity: Identity = await self._town.app.authenticate(self.token)
        people = self._town.app.modules[0].routes[1]
        try:
            await people.accounts.register_driver(identity, "Budi", "motorcycle", plate)
        except Conflict:
            # He has said so before, and was not answered.
            assert (await people.accounts.me(self.user_id)).role == "driver"

    async def connect(self) -> None:
        """Raises Killed when the process dies meanwhile."""
        self._town.life.on_death.append(self._news.set)
        seen = len(self.frames)
        self._line = Line(self._town.app, self.token, self._heard)
        await self._found(lambda frame: frame["event"] == "session.ready", since=seen)

    def _heard(self, text: str) -> None:
        # A dead process says nothing, whatever its tasks still do.
        if not self._town.life.dead:
            frame = msgspec.json.decode(text)
            self.frames.append(frame)
            self._learn(frame["event"], frame["data"])
            self._news.set()

    def _learn(self, event: str, data: dict[str, Any]) -> None:
        if event == "session.ready":
            # It is complete: what is not in it is over.
            proposals = {match["match_id"]: match["match_status"] for match in data["proposals"]}
            self.matches = dict.fromkeys(self.matches, "OVER") | proposals
            if data["match"] is not None:
                self.matches[data["match"]["match_id"]] = "ACCEPTED"
            self.rides = dict.fromkeys(self.rides, "OVER")
            if data["ride"] is not None:
                self.rides[data["ride"]["ride_id"]] = data["ride"]["status"]
        elif event.startswith("match.") and "match_id" in data:
            _keep_furthest(self.matches, data["match_id"], data["match_status"])
        elif event.startswith("ride.") and event not in ("ride.tracking", "ride.progress", "ride.payment"):
            _keep_furthest(self.rides, data["ride_id"], data["status"])

    async def _found(self, wanted: Callable[[dict[str, Any]], bool], *, since: int) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                if self._town.life.dead:
                    raise Killed
                for frame in self.frames[since:]:
                    if wanted(frame):
                        return frame
                self._news.clear()
                await self._news.wait()

    async def say(self, event: str, data: dict[str, Any], frame_id: str) -> dict[str, Any]:
        """The data of the answer. Raises Refused, Killed."""
        if self._line is None or self._town.life.dead:
            raise Killed
        seen = len(self.frames)
        self._line.say(msgspec.json.encode({"event": event, "data": data, "id": frame_id}).decode())
        answer = await self._found(
            lambda frame: frame["event"] in ("ack", "error") and frame["data"].get("id") == frame_id, since=seen
        )
        if answer["event"] == "error":
            raise Refused(answer["data"]["code"], answer["data"]["message"])
        return cast(dict[str, Any], answer["data"])

    async def point(self, place: dict[str, float]) -> None:
        stamp = self._town.clock.now().isoformat()
        await self.say("location.update", {"location": {**place, "timestamp": stamp}}, f"point at {stamp}")

    def proposal(self) -> str | None:
        """A match that waits for an answer."""
        return next((match_id for match_id, status in self.matches.items() if status == "PENDING"), None)

    def ride(self, *states: str) -> str | None:
        """A ride in one of these states."""
        return next((ride_id for ride_id, status in self.rides.items() if status in states), None)


def _keep_furthest(known: dict[str, str], about: str, status: str) -> None:
    """Frames may overtake each other."""
    if about not in known or ORDER.index(status) > ORDER.index(known[about]):
        known[about] = status


# -- the town


class Town:
    """Settings say where the facts lie, ``wires`` where events go."""

    def __init__(self, settings: Settings, faults: Faults, wires: Wires) -> None:
        self.clock = ManualClock()
        self.faults = faults
        self.phones: list[Phone] = []
        self._settings = settings
        self._wires = wires
        self._steps = itertools.count(1)

    async def rise(self) -> None:
        """The next life begins, and the phones connect to it; it may be a short one."""
        while True:
            try:
                return await self._start()
            except BaseException:
                if not self.life.dead:
                    raise
            await self.bury()

    async def _start(self) -> None:
        self.clock.advance(self._wires.pause)
        life = self.life = Life(self.faults)
        broker = cast(Broker, MortalBroker(await self._wires.lay(), life))
        self.probe = BusProbe(lambda: broker)
        self.app = self.process(self._settings, life, self.probe.broker())
        self.probe.watch(self.app.bus)
        life.live_on(self.app)
        await self.app.start()
        for phone in self.phones:
            await phone.connect()

    def process(self, settings: Settings, life: Life, broker: Broker) -> App:
        """The application of a new life."""
        return SocketsOnly(settings, clock=self.clock, broker=broker, sweeping=False)

    async def bury(self) -> None:
        """Nothing is left of the life that ended: no connection, no task."""
        await self._wires.cut()
        # What was about to begin does so, and finds itself dead.
        await asyncio.sleep(0)
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                # A socket that asyncio is accepting would be left open; whoever serves it is next.
                if task.get_coro().__name__ != "_accept_connection2":  # type: ignore[union-attr]
                    task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
        with watching():
            await self.app.database.close()

    async def end(self) -> None:
        """The last life ends in peace."""
        with watching():
            await self.app.stop()
        await self.bury()

    async def insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do it; when the process dies meanwhile, do it again in its next life."""
        while True:
            try:
                return await step()
            except BaseException:
                # What is raised on the way down is no error of a process that lives.
                if not self.life.dead:
                    raise
            await self.bury()
            await self.rise()

    async def passenger(self) -> Phone:
        phone = Phone(self)
        await self.insist(phone.login)
        await self.insist(phone.connect)
        self.phones.append(phone)
        return phone

    async def driver(self) -> Phone:
        phone = Phone(self)
        plate = f"B {len(self.phones) + 1} XYZ"
        await self.insist(phone.login)
        await self.insist(lambda: phone.become_driver(plate))
        await self.insist(phone.login)
        await self.insist(phone.connect)
        self.phones.append(phone)
        return phone

    async def say(self, phone: Phone, event: str, data: dict[str, Any]) -> dict[str, Any]:
        """Said again, with the same id, as long as it is not answered."""
        frame_id = f"step {next(self._steps)}"
        return await self.insist(lambda: phone.say(event, data, frame_id))

    async def pass_by(self, seconds: float) -> None:
        """So much time passes, and the process looks at the clock."""
        self.clock.advance(seconds)
        await self.insist(self._sweep)

    async def _sweep(self) -> None:
        await self.app.sweep()

    async def eventually(self, found: Callable[[], T | None]) -> T:
        """Wait for what must come; time passes only when nothing happens any more."""

        async def look() -> T:
            for _ in range(PATIENCE):
                with watching():
                    await self.probe.idle(WAIT)
                result = found()
                if result is not None:
                    return result
                self.clock.advance(1.0)
                await self._sweep()
            raise AssertionError(f"it never came: {[phone.frames[-3:] for phone in self.phones]}")

        return await self.insist(look)
