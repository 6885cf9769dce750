"""What people do with sessions: ask, write, read again, mark; and how an answer is stored, by whoever has it whole."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.tracing import current, new_trace
from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.users import UserUpdated
from nebengjek.database import Database
from nebengjek.errors import Conflict, Forbidden, Invalid, NotFound, RateLimited, Unavailable
from nebengjek.faststate import FastState
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.contracts import (
    ChatAnswered,
    ChatMarked,
    ChatMessage,
    ChunkMetadata,
    Marks,
    Message,
    Turn,
    WorkflowContext,
    WorkflowRequest,
)
from nebengjek_plugins.chat.hub import Ending
from nebengjek_plugins.chat.masking import mask_phone_numbers
from nebengjek_plugins.chat.settings import ChatSettings
from nebengjek_plugins.chat.store import Session

RIDE = "match-"
"""What the id of a ride's session begins with, before the match's; nobody can take such an id for himself."""
DAY = timedelta(days=1)
FREE = "ride_desk"
"""The assistant whose answers cost nothing."""
PARTS = 4
PARTS_SECONDS = 120.0
"""How many messages just before, and how young, are looked at for the parts of a phone number."""
TRY_AGAIN_SECONDS = 30.0
"""The longest that the bus lets pass between two tries."""
TOKEN_CHARACTERS = 4
"""Of a token, about: where nobody says what an answer took."""
TAKEN_AT_ONCE = 16
"""Messages that are stored at the same time. More would only be slower each, and whoever answers the first ones would
wait for a connection to the database until the last is stored."""
WAITING = 2000
"""Messages that may wait for their turn."""
TURN_CHARACTERS = 1000
"""Of an earlier message that a question takes along."""


class Wish(Struct, frozen=True, kw_only=True):
    """What a request may ask of an answer; what the settings do not allow is refused."""

    ai_provider: str | None = None
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Accepted(Struct, frozen=True, kw_only=True):
    message_id: str
    correlation_id: str


class _Known(Exception):
    """The message was stored before: nothing is to be done again."""

    def __init__(self, correlation_id: str) -> None:
        super().__init__(correlation_id)
        self.correlation_id = correlation_id


def _reused() -> Conflict:
    return Conflict("this message_id was used for another message", code="ID_REUSED")


class ChatService:
    """``Accepted`` is on its way when the transaction has committed: the outbox says it."""

    def __init__(
        self, bus: MessageBus, database: Database, state: FastState, clock: Clock, settings: ChatSettings
    ) -> None:
        self._bus = bus
        self._database = database
        self._state = state
        self._clock = clock
        self._settings = settings
        self._turns = asyncio.Semaphore(TAKEN_AT_ONCE)
        self._waiting = 0

    # -- who may

    async def enter(self, user_id: str, session_id: str) -> Session:
        """The session, for who may read and write it; a new one is his.

        Raises Forbidden, NotFound (of a ride), Conflict (TOO_MANY_SESSIONS).
        """
        async with self._database.read() as tx:
            found = await store.session(tx, session_id)
        if found is None:
            async with self._database.begin() as tx:
                return await self._entered(tx, user_id, session_id)
        return _allowed(found, user_id)

    async def _entered(self, tx: AsyncConnection, user_id: str, session_id: str) -> Session:
        found = await store.session(tx, session_id)
        if found is None:
            if session_id.startswith(RIDE):
                raise NotFound("there is no such ride of yours, or it is not agreed on yet")
            if await store.sessions_begun(tx, user_id) >= self._settings.sessions_per_user:
                raise Conflict("you have begun too many sessions, use an old one", code="TOO_MANY_SESSIONS")
            await store.make_session(tx, session_id, "desk", user_id, None, self._clock.now())
            found = await store.session(tx, session_id)
        if found is None:
            raise Conflict("the session was just forgotten, try again")
        return _allowed(found, user_id)

    async def _not_too_often(self, user_id: str) -> None:
        hits, left = await self._state.hit(f"chat:{user_id}", 60.0)
        if hits > self._settings.messages_per_minute:
            raise RateLimited("too many messages", retry_after=left)

    # -- writing

    async def post(
        self, user_id: str, session_id: str, text: str, *, message_id: str | None = None, wish: Wish | None = None
    ) -> tuple[Accepted, Message | None]:
        """Store a message and what is to be done about it; None: it was there already.

        Raises Forbidden, NotFound, Invalid, Conflict (CHAT_CLOSED, TOO_MANY_OPEN, TOO_MANY_SESSIONS, ID_REUSED),
        RateLimited (also BUDGET_USED), Unavailable (too many wait for their turn).
        """
        if not text.strip():
            raise Invalid("message: is empty")
        async with self._turn():
            return await self._post(user_id, session_id, text, message_id, wish)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= WAITING:
            raise Unavailable("chat", f"{WAITING} messages wait to be stored already, try again")
        self._waiting += 1
        try:
            async with self._turns:
                # On SQLite nothing else waits: what others do for the messages that are stored gets its turn, too.
                await asyncio.sleep(0)
                yield
        finally:
            self._waiting -= 1

    async def _post(
        self, user_id: str, session_id: str, text: str, message_id: str | None, wish: Wish | None
    ) -> tuple[Accepted, Message | None]:
        await self._not_too_often(user_id)
        now = self._clock.now()
        trace = current() or new_trace()
        message = Message(
            message_id=message_id or uuid7(),
            session_id=session_id,
            number=0,
            role="user",
            text=text,
            status="complete",
            created_at=now,
            correlation_id=trace.correlation_id[:64],
            sender_id=user_id,
        )
        try:
            async with self._database.begin() as tx:
                session = await self._entered(tx, user_id, session_id)
                # Numbered first: whoever writes here at the same time waits, and then sees what we did.
                message = await self._numbered(tx, message)
                if message_id is not None and (row := await store.row_of(tx, message_id)) is not None:
                    if row.session_id != session_id or row.sender_id != user_id:
                        raise _reused()
                    raise _Known(row.correlation_id)
                if session.closes_at is not None and now >= session.closes_at:
                    raise Conflict("the ride has been over for too long to write", code="CHAT_CLOSED")
                if session.kind == "ride":
                    message = await self._write(tx, session, message)
                else:
                    await self._ask(tx, session, message, wish or Wish())
        except _Known as known:
            return Accepted(message_id=message.message_id, correlation_id=known.correlation_id), None
        return Accepted(message_id=message.message_id, correlation_id=message.correlation_id), message

    async def _write(self, tx: AsyncConnection, session: Session, message: Message) -> Message:
        user_id = str(message.sender_id)
        since = message.created_at - timedelta(seconds=PARTS_SECONDS)
        before = await store.said_lately(tx, session.session_id, user_id, since, PARTS)
        message = structs.replace(message, text=mask_phone_numbers(message.text, "\n".join(before)))
        if not await store.add_message(tx, message, user_id=user_id, status="complete"):
            raise _reused()
        await store.mark(tx, session.session_id, user_id, delivered=message.number, read=message.number)
        await self._announce(tx, ChatMessage, message, session.parties)
        return message

    async def _ask(self, tx: AsyncConnection, session: Session, message: Message, wish: Wish) -> None:
        user_id = str(message.sender_id)
        context = await self._context(tx, session, wish)
        if len(await store.unanswered(tx, session.session_id)) >= self._settings.questions_open:
            raise Conflict("wait for the answers to your other questions", code="TOO_MANY_OPEN")
        reserved = await self._reserved(tx, user_id, context, message.created_at)
        if reserved:
            context = structs.replace(context, max_tokens=reserved)
        if not await store.add_message(tx, message, user_id=user_id, status="open", tokens_used=reserved):
            raise _reused()
        await self._bus.outbox.add(
            tx,
            WorkflowRequest(
                message_id=message.message_id,
                session_id=session.session_id,
                user_id=user_id,
                message=message.text,
                context=context,
                timestamp=message.created_at,
                correlation_id=message.correlation_id,
            ),
        )

    async def _reserved(self, tx: AsyncConnection, user_id: str, context: WorkflowContext, now: datetime) -> int:
        """Tokens that are kept for this answer until it is stored: what it may take at most, or what is left.

        0: nothing is limited, or the answer costs nothing. Raises RateLimited (BUDGET_USED).
        """
        limit = self._settings.tokens_per_day
        if not limit or context.ai_provider == FREE:
            return 0
        # Two questions at once, of two sessions, would both find the same tokens left.
        await store.lock_budget(tx, user_id)
        left = limit - await store.tokens_used(tx, user_id, now - DAY)
        if left <= 0:
            raise RateLimited("the answers of today are used up", retry_after=3600.0, code="BUDGET_USED")
        return min(left, context.max_tokens)

    async def _context(self, tx: AsyncConnection, session: Session, wish: Wish) -> WorkflowContext:
        """Raises Invalid for a wish that the settings do not allow."""
        own = self._settings
        provider = wish.ai_provider or own.ai_provider
        if provider not in (own.ai_provider, *own.providers):
            raise Invalid("context.ai_provider: is not offered here")
        model = wish.model if wish.model is not None else own.model
        if model not in (own.model, *own.models):
            raise Invalid("context.model: is not offered here")
        if wish.temperature is not None and provider == "anthropic":
            raise Invalid("context.temperature: this provider takes none")
        temperature = own.temperature if wish.temperature is None else wish.temperature
        if not 0 <= temperature <= 2:
            raise Invalid("context.temperature: expected 0 to 2")
        tokens = own.max_tokens if wish.max_tokens is None else wish.max_tokens
        if not 1 <= tokens <= own.max_tokens:
            raise Invalid(f"context.max_tokens: expected 1 to {own.max_tokens}")
        history = []
        if own.history_turns:
            for row in await store.questions_of(tx, session.session_id, own.history_turns):
                role = "user" if row.role == "user" else "assistant"
                history.append(Turn(role=role, content=row.text[:TURN_CHARACTERS]))
        return WorkflowContext(
            ai_provider=provider,
            model=model,
            temperature=temperature,
            max_tokens=tokens,
            system_prompt=own.system_prompt,
            conversation_history=history,
        )

    @staticmethod
    async def _numbered(tx: AsyncConnection, message: Message) -> Message:
        number = await store.next_number(tx, message.session_id)
        return structs.replace(message, number=number)

    async def _announce(
        self, tx: AsyncConnection, kind: type[ChatMessage] | type[ChatAnswered], message: Message, recipients: list[str]
    ) -> None:
        event = kind(
            session_id=message.session_id, message_id=message.message_id, recipients=recipients, message=message
        )
        await self._bus.outbox.add(tx, event)

    # -- answers

    async def store_answer(
        self,
        tx: AsyncConnection,
        session: Session,
        question: str,
        text: str,
        *,
        kind: type[ChatMessage] | type[ChatAnswered],
        attempt: int | None,
        metadata: ChunkMetadata | None,
        error: str | None,
        correlation_id: str,
    ) -> Message | None:
        """One message, one row, with the word of it in the outbox; None: the question was settled by somebody else.

        A whole answer takes the place of an incomplete one.
        """
        status = "broken" if error is not None else "complete"
        given = metadata or ChunkMetadata()
        if error is not None and given.tokens_used is None:
            given = structs.replace(given, tokens_used=await _produced(tx, question, text))
        settle = partial(store.settle_question, tx, session.session_id, question, status, attempt=attempt)
        row = await settle(was="open")
        if row is None and error is None:
            row = await settle(was="broken")
            if row is None and await store.row_of(tx, question) is not None:
                return None
            await store.drop_answer(tx, question)
        elif row is None and await store.row_of(tx, question) is not None:
            return None
        message = await self._numbered(
            tx,
            Message(
                message_id=uuid7(),
                session_id=session.session_id,
                number=0,
                role="assistant",
                text=text,
                status="complete" if error is None else "incomplete",
                created_at=self._clock.now(),
                correlation_id=correlation_id[:64],
                reply_to=question,
                error=error,
                attempt=attempt or (max(1, row.attempt) if row is not None else 1),
            ),
        )
        added = await store.add_message(
            tx,
            message,
            user_id=row.user_id if row is not None else session.owner_id,
            status=message.status,
            model=(given.model or "")[:100] or None,
            tokens_used=given.tokens_used or 0,
            finish_reason=given.finish_reason,
        )
        if not added:
            return None
        await self._announce(tx, kind, message, session.parties)
        return message

    async def finish(self, session: Session, question: str, text: str, ending: Ending) -> Message:
        """The pod has all chunks, or has given them up: the message as it is stored, by us if by nobody else.

        Raises Conflict: there is none, and there can be none.
        """
        async with self._database.read() as look:
            message = await store.answer_to(look, session.session_id, question)
        if message is not None and (message.status == "complete" or ending.error is not None):
            return message
        async with self._database.begin() as tx:
            stored = await self.store_answer(
                tx,
                session,
                question,
                text,
                kind=ChatMessage,
                attempt=None,
                metadata=ending.metadata,
                error=ending.error,
                correlation_id=ending.correlation_id,
            )
            if stored is None:
                stored = await store.answer_to(tx, session.session_id, question)
        if stored is None:
            raise Conflict("the question was answered and forgotten, or is another session's")
        return stored

    # -- reading again

    async def history(
        self, user_id: str, session_id: str, before: int | None, limit: int
    ) -> tuple[Session, list[Message], list[Marks]]:
        """The newest first. Raises Forbidden, NotFound."""
        async with self._database.read() as tx:
            session = await store.session(tx, session_id)
            if session is None:
                raise NotFound("there is no such session")
            _allowed(session, user_id)
            items = await store.before(tx, session_id, before, limit)
            marks = await store.marks_of(tx, session_id)
        if before is None and items:
            await self.mark(user_id, session, delivered=items[0].number, read=0)
        return session, items, marks

    async def sessions(self, user_id: str) -> list[Session]:
        """One's own, and those of one's rides, the newest first."""
        async with self._database.read() as tx:
            return await store.sessions_of(tx, user_id, 100)

    async def mark(self, user_id: str, session: Session, *, delivered: int, read: int) -> Marks | None:
        """A party of a ride has got messages up to a number, or read them; None: nothing new."""
        if session.kind != "ride":
            return None
        async with self._database.begin() as tx:
            found = await store.session(tx, session.session_id)
            last = found.last_number if found is not None else 0
            raised = await store.mark(
                tx, session.session_id, user_id, delivered=min(delivered, last), read=min(read, last)
            )
            if raised is not None:
                others = [party for party in session.parties if party != user_id]
                await self._bus.outbox.add(
                    tx, ChatMarked(session_id=session.session_id, marks=raised, recipients=others)
                )
        return raised

    async def user_changed(self, event: UserUpdated) -> None:
        """Who deletes his account takes his words along."""
        if event.deleted:
            async with self._database.begin() as tx:
                await store.forget_user(tx, event.user_id)

    async def give_up_old(self) -> None:
        """Once a minute: a question that no worker will end any more ends now, and what was reserved is free again.

        Its worker died at the last try, or there has been none for as long as all tries may take.
        """
        longest = self._settings.tries * (self._settings.answer_timeout + TRY_AGAIN_SECONDS)
        async with self._database.read() as look:
            old = await store.left_open(look, self._clock.now() - timedelta(seconds=longest), 100)
        for row in old:
            async with self._database.begin() as tx:
                session = await store.session(tx, row.session_id)
                if session is not None:
                    await self.store_answer(
                        tx,
                        session,
                        row.message_id,
                        "",
                        kind=ChatMessage,
                        attempt=None,
                        metadata=ChunkMetadata(finish_reason="error"),
                        error="NOT_ANSWERED",
                        correlation_id=row.correlation_id,
                    )

    async def forget_old(self) -> None:
        """Once an hour: what is older than the settings say."""
        async with self._database.begin() as tx:
            await store.forget_before(tx, self._clock.now() - timedelta(days=self._settings.keep_days))


async def _produced(tx: AsyncConnection, question: str, text: str) -> int:
    """What an answer that was broken off costs: what was said of it, and no more than was reserved."""
    row = await store.row_of(tx, question)
    reserved = row.tokens_used if row is not None and row.status == "open" else 0
    return min(int(reserved), math.ceil(len(text) / TOKEN_CHARACTERS))


def _allowed(session: Session, user_id: str) -> Session:
    if user_id not in session.parties:
        raise Forbidden("this session is not yours")
    return session
