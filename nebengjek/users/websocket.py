"""The phone's socket: frames in become commands and points, answers and events become frames out.

Over 300 lines: the socket's life, the frame's life, and the refusals of both.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec
import structlog
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.queries import RemoteError
from nebengjek.bus.tracing import enter, new_trace, tracing
from nebengjek.contracts.location import FrameRef
from nebengjek.contracts.match import AcceptMatch, MatchesOf, OngoingMatches, RejectMatch
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.rides import ArriveRide, CancelRide, OngoingRide, PayRide, RideOfUser, StartRide
from nebengjek.errors import (
    Conflict,
    Invalid,
    NebengJekError,
    NotFound,
    RateLimited,
    Rejected,
    Unauthenticated,
    Unavailable,
)
from nebengjek.faststate import FastState
from nebengjek.module import Command
from nebengjek.realtime.delivery import TOKEN_ENDED, TRY_AGAIN, Connection, Delivery, encode_frame
from nebengjek.realtime.limits import UNREADABLE, Allowance, Limits
from nebengjek.users import frames
from nebengjek.users.frames import SAYS, ErrorData, Frame, SessionReady
from nebengjek.users.service import UsersService
from nebengjek.web import Identity

SUBPROTOCOL = "nebengjek.v1"
BAD_FRAMES = 20
BAD_FRAMES_CODE = 4400
ANSWER_SECONDS = 300.0
SNAPSHOT_SECONDS = 1.0
GREETINGS = 32
"""Phones that one process greets at the same time. Each asks Redis, the database and two modules; thousands that do so
at once time each other out, come back and begin anew. In turn each is greeted once."""
NEED_NO_BUS = ("user.", "session.")
"""Commands that are written down, or concern this pod only."""

log = structlog.stdlib.get_logger("nebengjek.users.websocket")

_any_frame = msgspec.json.Decoder(Frame)


class Authenticate(Protocol):
    """The identity of a token. Raises Unauthenticated, also when its session has ended."""

    async def __call__(self, token: str) -> Identity: ...


class InvalidFrame(Invalid):
    """Not JSON, not an object with an event, or data of another shape than the event's."""

    code = "INVALID_FRAME"


class UnknownEvent(Invalid):
    code = "UNKNOWN_EVENT"


class Settings(Struct, frozen=True, kw_only=True):
    max_frame: int
    allowed_origins: tuple[str, ...] = ()
    """Of browsers' pages, besides those that come from the same host; ``*``: all."""


class PhoneSocket:
    """Serves every socket of this pod; one ``Phone`` each."""

    def __init__(
        self,
        bus: MessageBus,
        service: UsersService,
        delivery: Delivery,
        state: FastState,
        limits: Limits,
        authenticate: Authenticate,
        settings: Settings,
    ) -> None:
        self.bus = bus
        self.service = service
        self.delivery = delivery
        self.state = state
        self.limits = limits
        self.settings = settings
        self.commands = dict(COMMANDS)
        self.known = dict(SAYS)
        self.decode: Callable[[str], Any] = msgspec.json.Decoder(frames.frames_of(SAYS)).decode
        self._authenticate = authenticate
        self._turns = asyncio.Semaphore(GREETINGS)
        self.waiting = 0
        """Phones whose turn to be greeted has not come."""

    def add(self, commands: Sequence[Command]) -> None:
        """Before the first socket: phones may say these too. Raises ValueError for an event that is taken."""
        for command in commands:
            if command.event in self.known:
                raise ValueError(f"two frames would be called {command.event}")
            self.known[command.event] = command.data
            self.commands[command.event] = _from_phone(command)
        self.decode = msgspec.json.Decoder(frames.frames_of(self.known)).decode

    def route(self) -> ASGIRouteHandler:
        # Frames pass as ASGI messages: a wrapper around each of them is what most of them would cost.
        async def phone(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.WEBSOCKET:
                raise HTTPException(status_code=426, detail="this is a WebSocket", headers={"Upgrade": "websocket"})
            if self._comes_from_elsewhere(scope):
                # Before it is accepted a close is a 403.
                await send({"type": "websocket.close", "code": 1008, "reason": ""})
                return
            await self.serve(scope, receive, send)

        return ASGIRouteHandler("/ws", opt={"public": True}, copy_scope=False)(phone)

    def _comes_from_elsewhere(self, scope: Scope) -> bool:
        """Whether it is opened by a page that may not. Apps say no Origin; a browser cannot leave it out."""
        origin = _header(scope, b"origin")
        if not origin or urlsplit(origin).netloc == _header(scope, b"host"):
            return False
        return not {"*", origin} & {*self.settings.allowed_origins}

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept, tell what is going on, and go on until either side closes."""
        offered: list[str] = scope.get("subprotocols") or []  # type: ignore[assignment]
        await receive()
        try:
            await _say(send, _accept(SUBPROTOCOL if SUBPROTOCOL in offered else None))
            await self._serve(_asked(scope), receive, send, _token(scope, offered))
        except (Unauthenticated, NotFound) as error:
            await _say(send, {"type": "websocket.close", "code": TOKEN_ENDED, "reason": str(error)[:100]})
        except Unavailable as error:
            await _say(send, {"type": "websocket.close", "code": TRY_AGAIN, "reason": error.message[:100]})

    async def _serve(self, asked: tuple[str, int] | None, receive: Receive, send: Send, token: str) -> None:
        first = await self._turn(receive)
        try:
            if first is not None and first.done() and first.result()["type"] == "websocket.disconnect":
                # It has gone while it waited. Whoever is still there is served the sooner.
                return
            connection = await self._greet(asked, send, token)
        except BaseException:
            if first is not None:
                first.cancel()
            raise
        finally:
            self._turns.release()
        try:
            await Phone(self, receive, connection).read(first)
        finally:
            await self._leave(connection)

    async def _turn(self, receive: Receive) -> asyncio.Future[Any] | None:
        """Wait until it may be greeted; who had to wait may have said something by then: what is read of it first."""
        if not self._turns.locked():
            await self._turns.acquire()
            return None
        first = asyncio.ensure_future(receive())
        self.waiting += 1
        try:
            await self._turns.acquire()
        except BaseException:
            first.cancel()
            raise
        finally:
            self.waiting -= 1
        return first

    async def _greet(self, asked: tuple[str, int] | None, send: Send, token: str) -> Connection:
        """A connection that has been told what is going on; whoever gets it lets it ``_leave``."""
        identity = await self._authenticate(token)
        head = await self.delivery.mailbox.head(identity.user_id)
        epoch, last_seq = asked or (None, None)
        knows = epoch == head.epoch and last_seq is not None and head.first - 1 <= last_seq <= head.last_seq
        replay = "none" if asked is None else "complete" if knows else "reset"
        start = last_seq if knows and last_seq is not None else head.last_seq
        connection = Connection(uuid7(), identity, self.delivery.mailbox, head.epoch, start, send)
        try:
            await self.delivery.attach(connection)
            ready = await self._ready(connection, head.epoch, start, replay)
            connection.answer(encode_frame("session.ready", ready))
            connection.ring()
            connection.open()
        except BaseException:
            await self._leave(connection)
            raise
        return connection

    async def _leave(self, connection: Connection) -> None:
        await connection.end()
        await self.delivery.detach(connection)

    async def _ready(self, connection: Connection, epoch: str, last_seq: int, replay: str) -> SessionReady:
        user_id = connection.user_id
        row, beacon, finder = await self.service.state(user_id)
        if not row.online:
            await self.service.came(user_id)
        missing: list[str] = []

        async def ask(module: str, question: Awaitable[Any], otherwise: Any) -> Any:
            try:
                return await question
            except (Unavailable, RemoteError):
                missing.append(module)
                return otherwise

        with tracing(new_trace()):
            matches, ride = await asyncio.gather(
                ask(
                    "match",
                    self.bus.request(MatchesOf(user_id=user_id), timeout=SNAPSHOT_SECONDS),
                    OngoingMatches(proposals=[]),
                ),
                ask(
                    "rides",
                    self.bus.request(RideOfUser(user_id=user_id), timeout=SNAPSHOT_SECONDS),
                    OngoingRide(ride=None),
                ),
            )
        return SessionReady(
            user_id=user_id,
            role=row.role,
            connection_id=connection.id,
            pod_id=self.bus.pod_id,
            epoch=epoch,
            last_seq=last_seq,
            replay=replay,
            beacon=beacon,
            finder=finder,
            proposals=matches.proposals,
            match=matches.match,
            ride=ride.ride,
            missing=missing,
        )


class Phone:
    """One socket: its frames, one after the other."""

    def __init__(
        self,
        server: PhoneSocket,
        receive: Receive,
        connection: Connection,
    ) -> None:
        self._server = server
        self._receive = receive
        self._connection = connection
        self._identity = connection.identity
        settings = server.settings
        self._allowance = Allowance(server.limits, connection.user_id)
        self._max_frame = settings.max_frame
        self._bad = 0
        self._unsettled = 0
        self._settled: asyncio.Future[None] | None = None
        self._held: tuple[frames.PhonePoint, str | None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def read(self, first: Awaitable[Any] | None = None) -> None:
        """Handle frames until the connection is closed, by whichever side; one that is being handled is not cut off.

        ``first``: a ``receive`` that has begun already.
        """
        receive, connection = self._receive, self._connection
        while True:
            message: Any = await (first or receive())
            first = None
            text = message.get("text")
            if message["type"] == "websocket.disconnect":
                return
            if connection.close_code is not None:
                continue
            if text is None:
                self._refuse(InvalidFrame("frames are text, not binary"), None)
            elif len(text) > self._max_frame:
                connection.close(1009)
            else:
                await self._frame(text)

    async def _frame(self, text: str) -> None:
        try:
            frame = self._server.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            await self._not_read(text, error)
            return
        try:
            data, event = frame.data, frame.__struct_config__.tag
            if not self._allowance.spend(event):
                await self._allowance.refill(event)
            enter(new_trace())
            if event == "location.update":
                await self._point(data, frame.id)
            else:
                await self._command(event, data, frame.id)
        except (Rejected, Unavailable, RemoteError) as error:
            self._refuse(error, frame.id)
            if isinstance(error, RateLimited):
                return
        self._bad = 0

    async def _not_read(self, text: str, error: Exception) -> None:
        """Say what is wrong with it; a phone that goes on like this is closed."""
        frame_id: str | None = None
        refusal: NebengJekError = InvalidFrame(f"not a frame: {error}")
        with suppress(msgspec.DecodeError, RecursionError):
            frame = _any_frame.decode(text)
            frame_id = frame.id
            if frame.event in self._server.known:
                refusal = InvalidFrame(f"{frame.event}: {error}")
            else:
                refusal = UnknownEvent(f"there is no event {frame.event[:64]!r}")
        try:
            if not self._allowance.spend(UNREADABLE):
                await self._allowance.refill(UNREADABLE)
        except RateLimited as limited:
            self._refuse(limited, frame_id)
            return
        self._refuse(refusal, frame_id)
        self._bad += 1
        if self._bad >= BAD_FRAMES:
            self._connection.close(BAD_FRAMES_CODE)

    # -- points

    async def _point(self, data: frames.LocationData, frame_id: str | None) -> None:
        if self._unsettled and self._server.bus.is_away:
            self._hold(data.location, frame_id)
        else:
            await self._publish(data.location, frame_id)

    def _hold(self, point: frames.PhonePoint, frame_id: str | None) -> None:
        """With the bus away one point waits behind the one that is on its way: the newest."""
        if self._held is not None and self._held[1] is not None:
            self._refuse(Unavailable("bus", "a newer point took its place"), self._held[1])
        self._held = self._server.service.stamped(point), frame_id

    async def _publish(self, point: frames.PhonePoint, frame_id: str | None) -> None:
        self._unsettled += 1
        try:
            await self._server.service.point(
                self._connection.user_id,
                point,
                FrameRef(connection_id=self._connection.id, id=frame_id),
                self._point_settled if frame_id is None else partial(self._point_settled, frame_id=frame_id),
            )
        except BaseException:
            # It was not taken, so nobody will settle it.
            self._unsettled -= 1
            raise

    def _point_settled(self, envelope: Any, outcome: Any, frame_id: str | None = None) -> None:
        self._unsettled -= 1
        if not self._unsettled and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        held, self._held = self._held, None
        if isinstance(outcome, NebengJekError) and (held is None or frame_id is not None):
            self._refuse(Unavailable("bus", "the point could not be stored, send it again"), frame_id)
        if held is not None:
            self._next = asyncio.create_task(self._publish_held(*held), name="held point")

    async def _publish_held(self, point: frames.PhonePoint, frame_id: str | None) -> None:
        try:
            await self._publish(point, frame_id)
        except (Rejected, Unavailable) as error:
            self._refuse(error, frame_id)

    async def _points_stored(self, event: str) -> None:
        """What was sent before a command is in the stream before the command is decided.

        With the bus away only what needs no bus goes on. Raises Unavailable.
        """
        while self._unsettled:
            if self._server.bus.is_away:
                if event.startswith(NEED_NO_BUS):
                    return
                raise Unavailable("bus")
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled

    # -- commands

    async def _command(self, event: str, data: Any, frame_id: str | None) -> None:
        await self._points_stored(event)
        if frame_id is None:
            await self._server.commands[event](self, data)
            return
        key = f"frame:{self._connection.user_id}:{hashlib.sha256(frame_id.encode()).hexdigest()[:32]}"
        content = hashlib.sha256(event.encode() + b"\0" + msgspec.json.encode(data)).digest()
        known = await self._server.state.get(key)
        if known is not None:
            if known[:32] != content:
                raise Conflict("this id was used for another frame", code="ID_REUSED")
            self._connection.answer(known[32:])
            return
        answer = await self._answered(event, data, frame_id)
        await self._server.state.put(key, content + answer, ANSWER_SECONDS)
        self._connection.answer(answer)

    async def _answered(self, event: str, data: Any, frame_id: str) -> bytes:
        """The ack, or the refusal, which is the same when asked again; what is only unavailable may pass later."""
        try:
            result = await self._server.commands[event](self, data)
        except RateLimited:
            raise
        except Rejected as error:
            return encode_frame("error", _error(error, frame_id))
        fields = msgspec.structs.asdict(result) if result is not None else {}
        return encode_frame("ack", {"id": frame_id, **fields})

    @property
    def user_id(self) -> str:
        return self._connection.user_id

    async def beacon(self, data: frames.BeaconData) -> Any:
        return await self._server.service.beacon(self._connection.user_id, data)

    async def finder(self, data: frames.FinderData) -> Any:
        return await self._server.service.finder(self._connection.user_id, data)

    async def accept(self, data: frames.MatchAnswerData) -> Any:
        query = AcceptMatch(match_id=data.match_id, user_id=self._connection.user_id)
        return await self._server.bus.request(query)

    async def reject(self, data: frames.MatchAnswerData) -> Any:
        query = RejectMatch(match_id=data.match_id, user_id=self._connection.user_id, reason=data.reason)
        return await self._server.bus.request(query)

    async def start(self, data: frames.RideData) -> Any:
        return await self._server.bus.request(StartRide(ride_id=data.ride_id, user_id=self._connection.user_id))

    async def arrive(self, data: frames.ArriveData) -> Any:
        query = ArriveRide(
            ride_id=data.ride_id, user_id=self._connection.user_id, adjustment_factor=data.adjustment_factor
        )
        return await self._server.bus.request(query, timeout=15.0)

    async def pay(self, data: frames.PayData) -> Any:
        query = PayRide(ride_id=data.ride_id, user_id=self._connection.user_id, amount=data.amount, method=data.method)
        return await self._server.bus.request(query, timeout=15.0)

    async def cancel(self, data: frames.CancelData) -> Any:
        query = CancelRide(ride_id=data.ride_id, user_id=self._connection.user_id, reason=data.reason)
        return await self._server.bus.request(query)

    async def session_ack(self, data: frames.SessionAckData) -> None:
        seq = min(data.seq, self._connection.last_seq)
        await self._server.delivery.mailbox.trim(self._connection.user_id, seq)

    # -- refusals

    def _refuse(self, error: NebengJekError, frame_id: str | None) -> None:
        self._connection.answer(encode_frame("error", _error(error, frame_id)))


def _error(error: NebengJekError, frame_id: str | None) -> ErrorData:
    retry_after = round(error.retry_after, 3) if isinstance(error, RateLimited) else None
    code = str(getattr(error, "code", "INTERNAL"))
    message = str(getattr(error, "message", error))
    return ErrorData(code=code, message=message, id=frame_id, retry_after=retry_after)


def _from_phone(command: Command) -> Callable[[Phone, Any], Awaitable[Any]]:
    async def handle(phone: Phone, data: Any) -> Any:
        return await command.handler(phone.user_id, data)

    return handle


COMMANDS: dict[str, Callable[[Phone, Any], Awaitable[Any]]] = {
    "user.beacon": Phone.beacon,
    "user.finder": Phone.finder,
    "match.accept": Phone.accept,
    "match.reject": Phone.reject,
    "ride.start": Phone.start,
    "ride.arrive": Phone.arrive,
    "ride.pay": Phone.pay,
    "ride.cancel": Phone.cancel,
    "session.ack": Phone.session_ack,
}


def _accept(subprotocol: str | None) -> Any:
    return {"type": "websocket.accept", "subprotocol": subprotocol, "headers": []}


async def _say(send: Send, message: Any) -> None:
    # A phone that is gone again before it is answered is no error of ours.
    with suppress(OSError):
        await send(message)


def _header(scope: Scope, name: bytes) -> str:
    # A parsed copy of all headers would stay as long as the socket does.
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


def _token(scope: Scope, offered: list[str]) -> str:
    header = _header(scope, b"authorization")
    if header[:7].lower() == "bearer ":
        return header[7:].strip()
    for protocol in offered:
        if protocol.startswith("bearer."):
            return protocol.removeprefix("bearer.")
    raise Unauthenticated("a token is needed")


def _asked(scope: Scope) -> tuple[str, int] | None:
    """``?epoch=E&last_seq=N``; a number that is none is one that no mailbox knows."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    epoch, last = query.get("epoch"), query.get("last_seq")
    if epoch is None and last is None:
        return None
    try:
        return str(epoch), int(str(last))
    except ValueError:
        return str(epoch), -1
