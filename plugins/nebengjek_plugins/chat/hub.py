"""The pod's side: chunks come in from the bus, are put in order, and wake the readers that this pod holds.

A ``Room`` is a session that somebody reads here; its log is read by each reader at his own pace. The database is the
truth: what was lost on the way is asked for again, found there, or given up after its time.

Over 300 lines because what may become of an answer under way is one decision with many ends: each end (its last chunk,
the stored message, silence, a gap) reads and writes the same room and buffer, and two of them may race.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog
from msgspec import structs

from nebengjek.bus.errors import BusError
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.users import UserSessionEnded
from nebengjek.database import Database
from nebengjek.errors import Conflict, Unavailable
from nebengjek.realtime.delivery import Delivery
from nebengjek.realtime.presence import Presence
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.contracts import (
    ATTEMPT,
    RESTART,
    ChatAnswered,
    ChatMarked,
    ChatMessage,
    ChunkError,
    ChunkMetadata,
    Message,
    ResendRequest,
    ResponseChunk,
    attempt_of,
    is_restart,
)
from nebengjek_plugins.chat.measures import Measures
from nebengjek_plugins.chat.reorder import Reorder
from nebengjek_plugins.chat.settings import ChatSettings
from nebengjek_plugins.chat.store import Session

LOG_ENTRIES = 4000
"""Of a room; a reader that is farther behind comes again and finds what he missed in the database."""
LOG_BYTES = 2 * 1024 * 1024
FILL = 100
LIVE_ANSWERS = 32
"""Of a room: more under way at once are not ours."""
KNOWN_SESSIONS = 20_000
HEAL_AFTER = 1.0
"""Seconds after which an answer that is stored is taken from there, if its chunks have not come."""
ASK_AGAIN = 1.0
DONE_KEPT = 60.0
LOGIN_KEPT = 3600.0
"""Longer than a reader takes to notice."""

log = structlog.stdlib.get_logger("nebengjek.chat")

_encode = msgspec.json.Encoder().encode

Finish = Callable[[Session, str, str, "Ending"], Awaitable[Message]]


class Ending(NamedTuple):
    """How an answer ended that no worker of ours stored. ``error``: None when it is whole."""

    error: str | None
    metadata: ChunkMetadata | None
    correlation_id: str


class Entry(NamedTuple):
    """``answer``: the question that it answers, else the message's own id. ``length``: of the answer's text so far."""

    event: str
    data: bytes
    answer: str
    chunk_id: int
    length: int
    number: int
    """Of the message that is whole with this entry; 0 for a chunk."""


class Live:
    """An answer under way, as far as this pod has it."""

    def __init__(self, now: float) -> None:
        self.buffer = Reorder()
        self.chunks: list[ResponseChunk] = []
        self.length = 0
        self.heard_at = now
        self.asked_at = -1e18
        self.stored: Message | None = None
        self.stored_at = 0.0
        self.done_at: float | None = None
        self.number = 0
        """Of the message, when it is whole."""

    @property
    def text(self) -> str:
        return "".join(chunk.chunk for chunk in self.chunks if chunk.chunk_type == "content")


class Room:
    """``readers`` of a session on this pod, and what they read."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.known = session.last_number
        """The highest number of a message that was seen here; what is not above ``first`` was there before us."""
        self.first = session.last_number
        self.handled: set[int] = set()
        self.live: OrderedDict[str, Live] = OrderedDict()
        self.readers = 0
        self.base = 0
        self.entries: list[Entry] = []
        self._bytes = 0
        self._news = asyncio.Event()

    @property
    def end(self) -> int:
        """The place in the log that the next entry takes."""
        return self.base + len(self.entries)

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._bytes += len(entry.data)
        while len(self.entries) > LOG_ENTRIES or self._bytes > LOG_BYTES:
            self._bytes -= len(self.entries.pop(0).data)
            self.base += 1
        self.wake()

    def new(self, number: int) -> bool:
        """Is this message's number seen for the first time?"""
        self.known = max(self.known, number)
        if number <= self.first or number in self.handled:
            return False
        self.handled.add(number)
        return True

    def since(self, place: int) -> list[Entry] | None:
        """The entries from that place on; None: some of them are forgotten."""
        return None if place < self.base else self.entries[place - self.base :]

    def wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    @property
    def news(self) -> asyncio.Event:
        """Set when something was appended after it was asked for."""
        return self._news


class Hub:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        delivery: Delivery,
        readers: Presence,
        clock: Clock,
        settings: ChatSettings,
        finish: Finish,
        measures: Measures,
        *,
        pod_id: str,
    ) -> None:
        self.pod_id = pod_id
        self.rooms: dict[str, Room] = {}
        self.closing = False
        self.sent_away: set[str] = set()
        """Readers who are here still and have to go: their user has newer ones."""
        self.ended_logins: dict[str, float] = {}
        """Logins that ended while they might still be reading, and when."""
        self._bus = bus
        self._database = database
        self._delivery = delivery
        self._readers = readers
        self._clock = clock
        self._settings = settings
        self._finish = finish
        self._measures = measures
        measures.readers(lambda: self.connections)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._of_user: dict[str, dict[str, Room]] = {}
        """The readers of each user, the oldest first."""
        self._completing: set[asyncio.Task[None]] = set()

    # -- readers

    @property
    def connections(self) -> int:
        return sum(room.readers for room in self.rooms.values())

    async def enter(self, session: Session, reader_id: str, user_id: str) -> Room:
        """A reader is here; from now on what is said of the session is in the room's log.

        Of more than ``readers_per_user`` of one user the oldest are sent away.
        """
        room = self.rooms.get(session.session_id)
        if room is None:
            room = self.rooms[session.session_id] = Room(session)
        room.readers += 1
        readers = self._of_user.setdefault(user_id, {})
        readers[reader_id] = room
        for oldest in list(readers)[: -self._settings.readers_per_user]:
            self.sent_away.add(oldest)
            readers.pop(oldest).wake()
        await self._readers.attach(session.session_id, reader_id)
        return room

    async def leave(self, room: Room, reader_id: str, user_id: str) -> None:
        room.readers -= 1
        self.sent_away.discard(reader_id)
        readers = self._of_user.get(user_id, {})
        readers.pop(reader_id, None)
        if not readers:
            self._of_user.pop(user_id, None)
        self._let_go(room)
        await self._readers.detach(room.session.session_id, reader_id)

    def close(self) -> None:
        """All readers are sent away: they come again elsewhere."""
        self.closing = True
        for room in self.rooms.values():
            room.wake()

    async def login_ended(self, event: UserSessionEnded) -> None:
        """The streams of this login end, as its sockets do."""
        now = self._clock.seconds()
        self.ended_logins = {one: at for one, at in self.ended_logins.items() if now - at < LOGIN_KEPT}
        self.ended_logins[event.session_id] = now
        for room in self.rooms.values():
            room.wake()

    def holds(self, session: Session) -> bool:
        """Does anybody here read it, or have his phone here who may?"""
        room = self.rooms.get(session.session_id)
        if room is not None and room.readers:
            return True
        return any(self._delivery.here(user_id) for user_id in session.parties)

    def _let_go(self, room: Room) -> None:
        if not room.readers and all(live.done_at is not None for live in room.live.values()):
            self.rooms.pop(room.session.session_id, None)

    # -- what the bus brings

    async def heard(self, chunks: Sequence[ResponseChunk]) -> None:
        """Chunks from a worker, of any order; those of sessions that nobody reads here are left aside."""
        now = self._clock.seconds()
        if chunks:
            self._measures.delivered(chunks[0].timestamp)
        touched: dict[tuple[str, str], tuple[Room, Live]] = {}
        for chunk in chunks:
            room = await self._held(chunk.session_id)
            if room is None:
                continue
            live = room.live.get(chunk.message_id)
            if live is None:
                if len(room.live) >= LIVE_ANSWERS:
                    self._forget_done(room, now, at_once=True)
                if len(room.live) >= LIVE_ANSWERS:
                    log.warning("chat.too_many_answers", session=chunk.session_id)
                    continue
                live = room.live[chunk.message_id] = Live(now)
            if live.done_at is not None and not is_restart(chunk):
                continue
            live.heard_at = now
            self._emit(room, chunk.message_id, live, live.buffer.add(chunk, now))
            touched[chunk.session_id, chunk.message_id] = room, live
        for (_, answer), (room, live) in touched.items():
            if live.buffer.over:
                # The database takes its time, and the chunks of others do not wait for it.
                self._begin(self._complete(room, answer, live))
            elif live.buffer.missing is not None and not live.chunks:
                # We came in the middle: what was before is not lost, it was never sent to us.
                await self._ask_again(room, answer, live)

    async def _held(self, session_id: str) -> Room | None:
        room = self.rooms.get(session_id)
        if room is not None:
            return room
        session = await self._session(session_id)
        if session is None or not any(self._delivery.here(user_id) for user_id in session.parties):
            return None
        return self.rooms.setdefault(session_id, Room(session))

    async def _session(self, session_id: str) -> Session | None:
        known = self._sessions.get(session_id)
        if known is None:
            async with self._database.read() as tx:
                known = await store.session(tx, session_id)
            if known is None:
                return None
            self._sessions[session_id] = known
            if len(self._sessions) > KNOWN_SESSIONS:
                self._sessions.popitem(last=False)
        return known

    async def stored(self, event: ChatMessage | ChatAnswered) -> None:
        """A message is in the database, said by whoever stored it."""
        room = await self._held(event.session_id)
        if room is not None:
            await self._fill(room, event.message.number)
            self._found(room, event.message)

    def asked(self, message: Message) -> None:
        """A question was stored by this pod: nobody announces those."""
        room = self.rooms.get(message.session_id)
        if room is not None and room.session.kind == "desk":
            room.new(message.number)

    async def _fill(self, room: Room, number: int) -> None:
        """See what lies between what was seen last and this number: numbers are given in order, words overtake."""
        while number > room.known + 1:
            async with self._database.read() as tx:
                page = await store.after(tx, room.session.session_id, room.known, FILL)
            for message in page:
                self._found(room, message)
            if len(page) < FILL:
                break

    def _found(self, room: Room, message: Message) -> None:
        if not room.new(message.number) or (message.role == "user" and room.session.kind == "desk"):
            return
        if message.reply_to is None:
            room.append(Entry("message_complete", _encode(message), message.message_id, 0, 0, message.number))
            return
        now = self._clock.seconds()
        live = room.live.setdefault(message.reply_to, Live(now))
        if live.done_at is None and live.stored is None:
            live.stored, live.stored_at = message, now

    async def marked(self, event: ChatMarked) -> None:
        room = self.rooms.get(event.session_id)
        if room is not None:
            room.append(Entry("marks", _encode(event.marks), "", 0, 0, 0))

    # -- putting out

    def _emit(self, room: Room, answer: str, live: Live, ready: Sequence[ResponseChunk]) -> None:
        for chunk in ready:
            if is_restart(chunk):
                live.chunks.clear()
                live.length = 0
                live.stored = None
                live.done_at = None
            live.chunks.append(chunk)
            if chunk.chunk_type == "content":
                live.length += len(chunk.chunk)
            for user_id in room.session.parties:
                self._delivery.tell(user_id, "chat.chunk", chunk)
            if chunk.chunk_type != "error":
                room.append(Entry("chunk", _encode(chunk), answer, chunk.chunk_id, live.length, 0))
        # Chunks without words are room too.
        if max(live.length, len(live.chunks)) > 2 * self._settings.max_answer and not live.buffer.over:
            log.warning("chat.answer_too_long", session=room.session.session_id)
            self._give_up(room, answer, live, "TOO_LONG", "the answer became too long")

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="chat answer's end")
        self._completing.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._completing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("chat.not_completed", exc_info=error)

    async def _complete(self, room: Room, answer: str, live: Live) -> None:
        """The final chunk is here: the whole message, from whoever stored it; from us where nobody did."""
        if live.done_at is not None:
            return
        last = live.chunks[-1]
        message = live.stored
        if message is None:
            error = last.error.code if last.error is not None else None
            if error is None and last.chunk_type == "error":
                error = "FAILED"
            ending = Ending(error, last.metadata, last.correlation_id)
            try:
                message = await self._finish(room.session, answer, live.text, ending)
            except Unavailable as away:
                log.warning("chat.not_stored", session=room.session.session_id, dependency=away.dependency)
                return  # the next sweep tries again
            except Conflict as error:
                log.warning("chat.not_ours", session=room.session.session_id, error=error.message)
                live.done_at = self._clock.seconds()
                return
        await self._fill(room, message.number)
        if live.done_at is not None:
            return
        room.new(message.number)
        live.done_at, live.number = self._clock.seconds(), message.number
        if message.status == "incomplete":
            data = _encode(last if last.chunk_type == "error" else error_chunk(message, last.chunk_id + 1))
            room.append(Entry("error", data, answer, last.chunk_id, live.length, message.number))
        else:
            entry = Entry("message_complete", _encode(message), answer, last.chunk_id, live.length, message.number)
            room.append(entry)

    def _give_up(self, room: Room, answer: str, live: Live, code: str, why: str) -> None:
        chunk = ResponseChunk(
            session_id=room.session.session_id,
            message_id=answer,
            chunk_id=live.buffer.next_id,
            chunk="",
            chunk_type="error",
            is_final=True,
            timestamp=self._clock.now(),
            correlation_id=live.chunks[-1].correlation_id if live.chunks else "",
            metadata=ChunkMetadata(finish_reason="error"),
            error=ChunkError(code=code, message=why),
        )
        live.buffer.next_id += 1
        live.buffer.over = True
        self._measures.answered("incomplete")
        log.warning("chat.gave_up", session=room.session.session_id, message=answer, code=code)
        self._emit(room, answer, live, [chunk])

    def _heal(self, room: Room, answer: str, live: Live, message: Message) -> None:
        """Say what is missing of an answer from the message as it is stored."""
        text, next_id = live.text, live.buffer.next_id
        if live.chunks and (attempt_of(next_id) != message.attempt or not message.text.startswith(text)):
            first = max(message.attempt - 1, attempt_of(next_id)) * ATTEMPT
            self._emit(room, answer, live, [piece(message, first, RESTART, chunk_type="system")])
            live.stored = message
            text, next_id = "", first + 1
        rest = message.text[len(text) :]
        if message.status == "incomplete":
            self._emit(room, answer, live, [piece(message, next_id, rest)] if rest else [])
            self._emit(room, answer, live, [error_chunk(message, next_id + 1)])
        else:
            self._emit(room, answer, live, [piece(message, next_id, rest, is_final=True)])
        live.buffer.over = True

    # -- what time brings

    async def sweep(self) -> None:
        """Each second: ask again, take from the database, give up, forget."""
        now = self._clock.seconds()
        for room in list(self.rooms.values()):
            for answer, live in list(room.live.items()):
                if live.done_at is None:
                    await self._look_after(room, answer, live, now)
            self._forget_done(room, now)
            self._let_go(room)

    async def _look_after(self, room: Room, answer: str, live: Live, now: float) -> None:
        if not live.buffer.over:
            if live.stored is not None and now - live.stored_at >= HEAL_AFTER:
                self._heal(room, answer, live, live.stored)
            elif live.buffer.waited(now) > self._settings.missing_wait:
                why = f"chunk {live.buffer.missing} did not come within {self._settings.missing_wait:g} s"
                self._give_up(room, answer, live, "MISSING_CHUNK", why)
            elif now - live.heard_at > self._settings.silence:
                self._give_up(room, answer, live, "SILENCE", "the answer was not continued")
            elif live.buffer.missing is not None and now - live.asked_at >= ASK_AGAIN:
                await self._ask_again(room, answer, live)
        if live.buffer.over:
            await self._complete(room, answer, live)

    @staticmethod
    def _forget_done(room: Room, now: float, *, at_once: bool = False) -> None:
        for answer, live in list(room.live.items()):
            if live.done_at is not None and (at_once or not 0 <= now - live.done_at < DONE_KEPT):
                del room.live[answer]

    async def look(self) -> None:
        """Each five seconds: is there more in the database than we were told of?"""
        rooms = [room for room in self.rooms.values() if room.readers]
        if not rooms:
            return
        async with self._database.read() as tx:
            last = await store.last_numbers(tx, [room.session.session_id for room in rooms])
        for room in rooms:
            await self._fill(room, last.get(room.session.session_id, 0) + 1)

    async def beat(self) -> None:
        """Each two seconds: this pod still holds its readers."""
        await self._readers.beat()
        await self._readers.lapsed(0.0)

    # -- asking a worker

    async def _ask_again(self, room: Room, answer: str, live: Live) -> None:
        live.asked_at = self._clock.seconds()
        await self.ask(room.session.session_id, answer, live.buffer.missing or live.buffer.next_id)

    async def ask(self, session_id: str, answer: str, from_chunk: int) -> None:
        """Whoever answers this question says its chunks again, to us."""
        wanted = ResendRequest(pod_id=self.pod_id, session_id=session_id, message_id=answer, from_chunk=from_chunk)
        try:
            await self._bus.direct.tell(f"chat.session.{session_id}.resend", wanted, sensitive=False)
        except (Unavailable, BusError) as error:
            log.warning("chat.not_asked", session=session_id, error=str(error))


def piece(
    message: Message, chunk_id: int, text: str, *, chunk_type: str = "content", is_final: bool = False
) -> ResponseChunk:
    """A chunk made of a message that is stored."""
    chunk = ResponseChunk(
        session_id=message.session_id,
        message_id=message.reply_to or message.message_id,
        chunk_id=chunk_id,
        chunk=text,
        chunk_type="content",
        is_final=is_final,
        timestamp=message.created_at,
        correlation_id=message.correlation_id,
    )
    return structs.replace(chunk, chunk_type="system") if chunk_type == "system" else chunk


def error_chunk(message: Message, chunk_id: int) -> ResponseChunk:
    """What a reader is told of an answer that stays incomplete."""
    code = message.error or "INCOMPLETE"
    return structs.replace(
        piece(message, chunk_id, "", is_final=True),
        chunk_type="error",
        metadata=ChunkMetadata(finish_reason="error"),
        error=ChunkError(code=code, message="a part of this answer is missing"),
    )
