"""Reading a session as server-sent events: from where the reader was, without a gap, on whichever pod he comes to.

The id of an event says how far its reader is: the last whole message, and of each answer under way the chunk and the
characters that he has. So another pod can go on from the database and from what the worker says again, also when the
answer has ended meanwhile.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Self

import msgspec
from anyio import CancelScope
from litestar.types import Receive, Scope, Send

from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.database import Database
from nebengjek.errors import Invalid
from nebengjek.web import Identity
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.contracts import ATTEMPT, RESTART, Message, attempt_of
from nebengjek_plugins.chat.hub import Entry, Hub, Room, error_chunk, piece
from nebengjek_plugins.chat.service import ChatService
from nebengjek_plugins.chat.settings import ChatSettings
from nebengjek_plugins.chat.store import Session

RETRY_MS = 2000
"""What a browser waits before it comes again."""
PAGE = 200
PING = b": ping\n\n"

_encode = msgspec.json.Encoder().encode
_PLACE = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,15})\.([0-9]{1,9})")
_CURSOR = re.compile(r"([0-9]{1,9})((?:~[A-Za-z0-9_-]{1,64}\.[0-9]{1,15}\.[0-9]{1,9}){0,32})")


class Cursor:
    """How far a reader is. ``places``: by question, the last chunk of its answer and the characters up to its end."""

    def __init__(self, number: int, places: dict[str, tuple[int, int]] | None = None) -> None:
        self.number = number
        self.places = places or {}
        self.floor = number
        """What is not above it was read from the database."""
        self._whole: set[str] = set()

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises Invalid: not an id that we gave."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise _not_ours()
        places = {one[1]: (int(one[2]), int(one[3])) for one in _PLACE.finditer(found[2])}
        return cls(int(found[1]), places)

    def __str__(self) -> str:
        places = (f"~{answer}.{chunk_id}.{length}" for answer, (chunk_id, length) in self.places.items())
        return f"{self.number}{''.join(places)}"

    def takes(self, entry: Entry) -> bool:
        """Is it new to this reader? Then he has it from now on."""
        if entry.number:
            known = entry.number <= self.floor and entry.answer not in self.places
            if known or entry.answer in self._whole:
                return False
            self.whole(entry.answer, entry.number)
        elif entry.answer:
            if entry.answer in self._whole or entry.chunk_id <= self.places.get(entry.answer, (-1, 0))[0]:
                return False
            self.places[entry.answer] = entry.chunk_id, entry.length
        return True

    def whole(self, answer: str, number: int) -> None:
        self.places.pop(answer, None)
        self._whole.add(answer)
        self.number = max(self.number, number)


def reading_from(last_event_id: str | None, session: Session) -> Cursor | None:
    """Where a reader of this session was. Raises Invalid: we never gave him such an id."""
    if not last_event_id:
        return None
    cursor = Cursor.read(last_event_id)
    # Numbers are given in this session's row: of what it has not come to yet nobody was told.
    if cursor.number > session.last_number:
        raise _not_ours()
    return cursor


def _not_ours() -> Invalid:
    return Invalid("Last-Event-ID: is not one that this server gave for this session", code="INVALID_LAST_EVENT_ID")


class Reading:
    """One reader of one session."""

    def __init__(
        self,
        hub: Hub,
        service: ChatService,
        database: Database,
        clock: Clock,
        settings: ChatSettings,
        session: Session,
        identity: Identity,
    ) -> None:
        self._hub = hub
        self._service = service
        self._identity = identity
        self._user_id = identity.user_id
        self._marked = 0
        self._sent = 0
        self._database = database
        self._clock = clock
        self._settings = settings
        self._session = session

    async def events(self, cursor: Cursor | None) -> AsyncGenerator[bytes, None]:
        """Bytes to send, a ping where nothing is said; ends with the login, or when the pod sends the reader away.

        ``cursor``: where he was, None for who was not here before.
        """
        reader_id = uuid7()
        room = await self._hub.enter(self._session, reader_id, self._user_id)
        try:
            resumed = cursor is not None
            if cursor is None:
                cursor = await self._beginning()
            connected = {
                "session_id": self._session.session_id,
                "pod_id": self._hub.pod_id,
                "kind": self._session.kind,
                "resumed": resumed,
            }
            yield b"retry: %d\n" % RETRY_MS + _event("connected", _encode(connected), cursor)
            place = room.end
            async for data in self._catch_up(room, cursor):
                yield data
                if self._over(reader_id):
                    return
            await self._delivered(cursor.number)
            while not self._over(reader_id):
                news = room.news
                entries = room.since(place)
                if entries is None:
                    # Too slow, or we: what is in the log no longer is in the database, and under way what is here.
                    place = room.end
                    async for data in self._catch_up(room, cursor):
                        yield data
                        if self._over(reader_id):
                            return
                    continue
                place += len(entries)
                if data := b"".join(_event(one.event, one.data, cursor) for one in entries if cursor.takes(one)):
                    yield data
                    await self._delivered(cursor.number)
                elif not entries:
                    try:
                        await asyncio.wait_for(news.wait(), self._settings.ping_seconds)
                    except TimeoutError:
                        yield PING
        finally:
            # A reader who goes away cancels us: his place is given up all the same.
            with CancelScope(shield=True):
                await self._hub.leave(room, reader_id, self._user_id)
                await self._delivered(self._sent)

    def _over(self, reader_id: str) -> bool:
        """The pod closes, or who reads has newer streams, or is not logged in any more."""
        login = self._identity
        ended = login.session_id in self._hub.ended_logins or login.expires_at <= self._clock.now()
        return self._hub.closing or ended or reader_id in self._hub.sent_away

    async def _delivered(self, number: int) -> None:
        """What was sent to a party of a ride is on his phone: also if he hung up as soon as he had it."""
        self._sent = number
        if self._session.kind == "ride" and number > self._marked:
            await self._service.mark(self._user_id, self._session, delivered=number, read=0)
            self._marked = number

    async def _beginning(self) -> Cursor:
        """For a reader who was not here before: the answer to a question that was just asked, else what comes."""
        async with self._database.read() as tx:
            session = await store.session(tx, self._session.session_id)
            last = session.last_number if session is not None else 0
            question = await store.last_question(tx, self._session.session_id)
        if self._session.kind == "desk" and question is not None:
            age = (self._clock.now() - question.created_at).total_seconds()
            if age < self._settings.replay_seconds:
                return Cursor(question.number)
        return Cursor(last)

    async def _catch_up(self, room: Room, cursor: Cursor) -> AsyncGenerator[bytes, None]:
        """What is in the database beyond the cursor, then what is under way."""
        while True:
            async with self._database.read() as tx:
                page = await store.after(tx, self._session.session_id, cursor.number, PAGE)
                waiting = await store.unanswered(tx, self._session.session_id)
                # Of two answers under way the one that was stored first may have been read last.
                known = await store.answers_to(tx, self._session.session_id, list(cursor.places))
                page += [one for one in known if one not in page]
            for message in page:
                if data := self._whole(message, cursor):
                    yield data
            cursor.floor = cursor.number
            if len(page) < PAGE:
                break
        for answer, live in list(room.live.items()):
            if live.done_at is not None and live.number <= cursor.number:
                continue
            length = 0
            for chunk in list(live.chunks):
                length += len(chunk.chunk) if chunk.chunk_type == "content" else 0
                if chunk.chunk_type != "error":
                    entry = Entry("chunk", _encode(chunk), answer, chunk.chunk_id, length, 0)
                    if cursor.takes(entry):
                        yield _event("chunk", entry.data, cursor)
        for message_id in waiting:
            # What was said while nobody read here was not sent to us; and who speaks learns that we are here.
            under_way = room.live.get(message_id)
            next_id = under_way.buffer.next_id if under_way is not None else 0
            await self._hub.ask(self._session.session_id, message_id, next_id)

    def _whole(self, message: Message, cursor: Cursor) -> bytes:
        """A stored message, for a reader who has a part of it, or nothing."""
        if message.role == "user" and self._session.kind == "desk":
            cursor.number = max(cursor.number, message.number)
            return b""
        if message.reply_to is None:
            cursor.whole(message.message_id, message.number)
            return _event("message_complete", _encode(message), cursor)
        chunk_id, length = cursor.places.get(message.reply_to, (-1, 0))
        data = b""
        if chunk_id >= 0 and attempt_of(chunk_id) != message.attempt:
            chunk_id, length = max(message.attempt - 1, attempt_of(chunk_id)) * ATTEMPT, 0
            data += self._piece(message, chunk_id, 0, RESTART, cursor, chunk_type="system")
        rest = message.text[length:]
        if rest:
            data += self._piece(message, chunk_id + 1, len(message.text), rest, cursor)
        cursor.whole(message.reply_to, message.number)
        if message.status == "incomplete":
            return data + _event("error", _encode(error_chunk(message, chunk_id + 2)), cursor)
        return data + _event("message_complete", _encode(message), cursor)

    @staticmethod
    def _piece(
        message: Message, chunk_id: int, length: int, text: str, cursor: Cursor, *, chunk_type: str = "content"
    ) -> bytes:
        cursor.places[str(message.reply_to)] = chunk_id, length
        return _event("chunk", _encode(piece(message, chunk_id, text, chunk_type=chunk_type)), cursor)


def _event(name: str, data: bytes, cursor: Cursor) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (str(cursor).encode(), name.encode(), data)


class EventStream:
    """An ASGI application that sends ``events`` for as long as somebody reads them.

    ``patience``: seconds for which he may take nothing of what he is sent.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], *, patience: float) -> None:
        self._events = events
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send), name="chat reader")
        leaving = asyncio.create_task(_gone(receive), name="chat reader's end")
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.wait((sending, leaving))
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._events) as events:
            # Who hangs up while something is sent to him, or takes nothing of it, is no failure of ours.
            with suppress(OSError, TimeoutError):
                async for data in events:
                    async with asyncio.timeout(self._patience):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
