"""Chat over HTTP: write, read as it is written, read again, mark; and the queue of the people who help."""

from collections.abc import Callable
from typing import Annotated, Any

from litestar import Controller, Request, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.types import ASGIApp
from msgspec import Meta, Struct

from nebengjek.clock import Clock
from nebengjek.database import Database
from nebengjek.errors import Invalid
from nebengjek.module import Command
from nebengjek.web import Identity
from nebengjek_plugins.chat.contracts import HealthResponse, Marks, Message, MessageId, SessionId, Text
from nebengjek_plugins.chat.health import Health
from nebengjek_plugins.chat.hub import Hub
from nebengjek_plugins.chat.measures import Measures
from nebengjek_plugins.chat.operators import Desk, Waiting
from nebengjek_plugins.chat.reading import EventStream, Reading, reading_from
from nebengjek_plugins.chat.service import Accepted, ChatService, Wish
from nebengjek_plugins.chat.settings import ChatSettings
from nebengjek_plugins.chat.store import Session

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Any]

_SESSION_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Posting(Struct, frozen=True, kw_only=True):
    """``message_id``: your own, so that it is safe to send it again. ``context``: for questions only."""

    message: Text
    message_id: MessageId | None = None
    context: Wish | None = None


class History(Struct, frozen=True, kw_only=True):
    """Newest first. ``last_event_id``: from there the stream goes on. ``next_cursor``: for what is older."""

    session: Session
    items: list[Message]
    marks: list[Marks]
    next_cursor: str | None
    last_event_id: str


class Sessions(Struct, frozen=True, kw_only=True):
    items: list[Session]


class ReadMark(Struct, frozen=True, kw_only=True):
    """``number``: of the last message that was read; ``delivered`` of the last one that the phone has."""

    number: Annotated[int, Meta(ge=0, le=2**31)] = 0
    delivered: Annotated[int, Meta(ge=0, le=2**31)] = 0


class Marked(Struct, frozen=True, kw_only=True):
    marked: bool


class SendData(Posting, frozen=True, kw_only=True):
    """``chat.send`` of a phone: as the request."""

    session_id: SessionId


class ReadData(ReadMark, frozen=True, kw_only=True):
    """``chat.read`` of a phone: as the request."""

    session_id: SessionId


def commands(service: ChatService, hub: Hub, measures: Measures) -> list[Command]:
    """The same over the phone's socket."""

    async def send(user_id: str, data: SendData) -> Accepted:
        accepted, message = await service.post(
            user_id, data.session_id, data.message, message_id=data.message_id, wish=data.context
        )
        if message is not None:
            hub.asked(message)
            measures.questions.inc()
        return accepted

    async def read(user_id: str, data: ReadData) -> Marked:
        session = await service.enter(user_id, data.session_id)
        return Marked(
            marked=await service.mark(user_id, session, delivered=data.delivered, read=data.number) is not None
        )

    return [
        Command(event="chat.send", data=SendData, handler=send, answer=Accepted),
        Command(event="chat.read", data=ReadData, handler=read, answer=Marked),
    ]


class Reply(Struct, frozen=True, kw_only=True):
    """``close``: nothing is left to be answered."""

    message: Text
    close: bool = True


class Queue(Struct, frozen=True, kw_only=True):
    items: list[Waiting]


class ChatPods(Struct, frozen=True, kw_only=True):
    """``silent``: pods that were heard lately and do not answer now."""

    items: list[HealthResponse]
    silent: list[str]


def session_token(text: str) -> str:
    """Raises Invalid unless it can be one token of a subject."""
    if not 1 <= len(text) <= 64 or not _SESSION_CHARACTERS.issuperset(text):
        raise Invalid("session_id: 1 to 64 letters, digits, - and _", code="INVALID_SESSION_ID")
    return text


class ChatController(Controller):
    path = "/chat"
    tags = ["chat"]
    service: ChatService
    hub: Hub
    measures: Measures
    database: Database
    clock: Clock
    settings: ChatSettings

    @get("/sessions")
    async def sessions(self, user: NamedDependency[Identity]) -> Sessions:
        """Your sessions, newest first."""
        return Sessions(items=await self.service.sessions(user.user_id))

    @post("/{session_id:str}/messages", status_code=202)
    async def write(
        self, session_id: FromPath[str], user: NamedDependency[Identity], data: JSONBody[Posting]
    ) -> Accepted:
        """Ask the desk, or write to the other party of the ride; what comes of it is in the stream."""
        accepted, message = await self.service.post(
            user.user_id, session_token(session_id), data.message, message_id=data.message_id, wish=data.context
        )
        if message is not None:
            self.hub.asked(message)
            self.measures.questions.inc()
        return accepted

    @get(
        "/{session_id:str}/stream",
        media_type="text/event-stream",
        responses={200: ResponseSpec(str, description="connected, chunk, message_complete, error, marks")},
    )
    async def stream(
        self,
        request: Request[Any, Any, Any],
        session_id: FromPath[str],
        user: NamedDependency[Identity],
        last_event_id: FromQuery[str | None] = None,
    ) -> ASGIApp:
        """Server-sent events; ``Last-Event-ID`` (or the query's ``last_event_id``) goes on where you were."""
        given = request.headers.get("last-event-id") or last_event_id
        session = await self.service.enter(user.user_id, session_token(session_id))
        cursor = reading_from(given, session)
        reading = Reading(self.hub, self.service, self.database, self.clock, self.settings, session, user)
        return EventStream(reading.events(cursor), patience=self.settings.reader_timeout)

    @get("/{session_id:str}/messages")
    async def history(
        self,
        session_id: FromPath[str],
        user: NamedDependency[Identity],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 50,
        cursor: FromQuery[str | None] = None,
    ) -> History:
        """What was written, newest first."""
        before = None
        if cursor is not None:
            if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 9:
                raise Invalid("cursor: is not one that this server gave")
            before = int(cursor)
        session, items, marks = await self.service.history(user.user_id, session_token(session_id), before, limit + 1)
        more = len(items) > limit
        items = items[:limit]
        return History(
            session=session,
            items=items,
            marks=marks,
            next_cursor=str(items[-1].number) if more else None,
            last_event_id=str(items[0].number if items and before is None else session.last_number),
        )

    @post("/{session_id:str}/read", status_code=200)
    async def read(
        self, session_id: FromPath[str], user: NamedDependency[Identity], data: JSONBody[ReadMark]
    ) -> Marked:
        """Say what you have read of a ride's messages, or what your phone has got."""
        session = await self.service.enter(user.user_id, session_token(session_id))
        raised = await self.service.mark(user.user_id, session, delivered=data.delivered, read=data.number)
        return Marked(marked=raised is not None)


class OperatorsController(Controller):
    path = "/admin/chat"
    tags = ["admin"]
    desk: Desk
    health: Health

    @get("/queue")
    async def queue(self, limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100) -> Queue:
        """What waits for a person, the oldest first, with the last messages of each session."""
        return Queue(items=await self.desk.queue(limit))

    @post("/{session_id:str}/messages", status_code=201)
    async def reply(self, session_id: FromPath[str], data: JSONBody[Reply]) -> Message:
        """Answer a user who waits."""
        return await self.desk.reply(session_token(session_id), data.message, close=data.close)

    @get("/pods")
    async def pods(self) -> ChatPods:
        """The pods that hold readers, asked now."""
        healthy, silent = await self.health.ask_all()
        return ChatPods(items=healthy, silent=silent)
