"""What chat keeps in SQL; every function takes the caller's transaction. Numbers of a session commit in order: who
takes one holds the session's row until he commits.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, and_, bindparam, delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.database import insert_ignore
from nebengjek.sql import one_of
from nebengjek_plugins.chat.contracts import Marks, Message
from nebengjek_plugins.chat.tables import handovers, marks, messages, sessions


class Session(Struct, frozen=True, kw_only=True):
    """``kind``: ``desk`` or ``ride``."""

    session_id: str
    kind: str
    owner_id: str
    other_id: str | None
    last_number: int
    closes_at: datetime | None

    @property
    def parties(self) -> list[str]:
        return [self.owner_id] if self.other_id is None else [self.owner_id, self.other_id]


_SESSION = [sessions.c[name] for name in Session.__struct_fields__]

# What each question needs is put together once: to build a statement anew costs more than to run it.
_SESSION_OF = select(*_SESSION).where(sessions.c.session_id == bindparam("session"))
_NEXT_NUMBER = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("session"))
    .values(last_number=sessions.c.last_number + 1)
    .returning(sessions.c.last_number)
)
_ROW_OF = select(messages).where(messages.c.message_id == bindparam("message"))
_ANSWER_TO = select(messages).where(
    messages.c.reply_to == bindparam("message"), messages.c.session_id == bindparam("session")
)
_BEGIN_ATTEMPT = (
    update(messages)
    .where(
        messages.c.message_id == bindparam("message"),
        messages.c.session_id == bindparam("session"),
        one_of(messages.c.status, ["open", "broken"]),
    )
    .values(attempt=messages.c.attempt + 1)
    .returning(messages.c.attempt)
)
_UNANSWERED = select(messages.c.message_id).where(
    messages.c.session_id == bindparam("session"), messages.c.status == "open"
)
_AFTER = (
    select(messages)
    .where(messages.c.session_id == bindparam("session"), messages.c.number > bindparam("beyond"))
    .order_by(messages.c.number)
    .limit(bindparam("rows"))
)
_LOCK_BUDGET = text("SELECT pg_advisory_xact_lock(hashtextextended(:user, 0))")
_SETTLE = (
    update(messages)
    .where(
        messages.c.message_id == bindparam("message"),
        messages.c.session_id == bindparam("session"),
        messages.c.status == bindparam("was"),
    )
    .values(status=bindparam("now"), tokens_used=0)
    .returning(messages)
)
_SETTLE_ATTEMPT = _SETTLE.where(messages.c.attempt == bindparam("of_attempt"))


async def session(tx: AsyncConnection, session_id: str) -> Session | None:
    row = (await tx.execute(_SESSION_OF, {"session": session_id})).one_or_none()
    return None if row is None else Session(**row._mapping)


async def make_session(
    tx: AsyncConnection, session_id: str, kind: str, owner_id: str, other_id: str | None, now: datetime
) -> bool:
    """False: there is one of this id."""
    row = {
        "session_id": session_id,
        "kind": kind,
        "owner_id": owner_id,
        "other_id": other_id,
        "last_number": 0,
        "created_at": now,
    }
    return await insert_ignore(tx, sessions, row)


async def close_session(tx: AsyncConnection, session_id: str, at: datetime) -> None:
    """From then on nothing is written any more; an end that was set before stays."""
    mine = and_(sessions.c.session_id == session_id, sessions.c.closes_at.is_(None))
    await tx.execute(update(sessions).where(mine).values(closes_at=at))


async def next_number(tx: AsyncConnection, session_id: str) -> int:
    """Takes the session's row until the end of the transaction."""
    return int((await tx.execute(_NEXT_NUMBER, {"session": session_id})).scalar_one())


async def last_numbers(tx: AsyncConnection, session_ids: Sequence[str]) -> dict[str, int]:
    found = select(sessions.c.session_id, sessions.c.last_number).where(sessions.c.session_id.in_(session_ids))
    return {row.session_id: row.last_number for row in await tx.execute(found)}


# -- messages


async def add_message(tx: AsyncConnection, message: Message, *, user_id: str, status: str, **more: Any) -> bool:
    """``status`` as in the table. False: there is one of this id, or of this ``reply_to``."""
    row = {
        "message_id": message.message_id,
        "session_id": message.session_id,
        "number": message.number,
        "role": message.role,
        "sender_id": message.sender_id,
        "user_id": user_id,
        "text": message.text,
        "status": status,
        "attempt": 0 if status == "open" else message.attempt,
        "reply_to": message.reply_to,
        "correlation_id": message.correlation_id,
        "tokens_used": 0,
        "model": None,
        "finish_reason": None,
        "error": message.error,
        "created_at": message.created_at,
        **more,
    }
    return await insert_ignore(tx, messages, row)


async def row_of(tx: AsyncConnection, message_id: str) -> Row[Any] | None:
    return (await tx.execute(_ROW_OF, {"message": message_id})).one_or_none()


async def answer_to(tx: AsyncConnection, session_id: str, message_id: str) -> Message | None:
    row = (await tx.execute(_ANSWER_TO, {"session": session_id, "message": message_id})).one_or_none()
    return None if row is None else view(row)


async def answers_to(tx: AsyncConnection, session_id: str, message_ids: Sequence[str]) -> list[Message]:
    """Those of this session: the ids are a reader's word."""
    if not message_ids:
        return []
    mine = and_(messages.c.session_id == session_id, messages.c.reply_to.in_(message_ids))
    rows = await tx.execute(select(messages).where(mine))
    return [view(row) for row in rows]


async def begin_attempt(tx: AsyncConnection, session_id: str, message_id: str) -> int | None:
    """The number of the attempt that begins now; None when the question is answered, or there is none."""
    begun = await tx.execute(_BEGIN_ATTEMPT, {"session": session_id, "message": message_id})
    attempt: int | None = begun.scalar_one_or_none()
    return attempt


async def settle_question(
    tx: AsyncConnection, session_id: str, message_id: str, status: str, *, attempt: int | None, was: str
) -> Row[Any] | None:
    """``was`` → ``status``; what was reserved for the answer is free again. The question's row; None: it was not so.

    ``attempt``: only if no later one has begun.
    """
    statement = _SETTLE if attempt is None else _SETTLE_ATTEMPT
    given: dict[str, Any] = {"message": message_id, "session": session_id, "was": was, "now": status}
    if attempt is not None:
        given["of_attempt"] = attempt
    row: Row[Any] | None = (await tx.execute(statement, given)).one_or_none()
    return row


async def drop_answer(tx: AsyncConnection, message_id: str) -> None:
    """An incomplete answer makes room for the whole one."""
    await tx.execute(delete(messages).where(messages.c.reply_to == message_id, messages.c.status == "incomplete"))


async def unanswered(tx: AsyncConnection, session_id: str) -> list[str]:
    """The questions that wait for their answers."""
    return list((await tx.execute(_UNANSWERED, {"session": session_id})).scalars())


async def left_open(tx: AsyncConnection, before: datetime, limit: int) -> list[Row[Any]]:
    """Questions that were asked before then and wait for their answers still."""
    waiting = select(messages).where(messages.c.status == "open", messages.c.created_at < before)
    return list(await tx.execute(waiting.order_by(messages.c.created_at).limit(limit)))


async def lock_budget(tx: AsyncConnection, user_id: str) -> None:
    """Until the end of the transaction nobody else reserves tokens of this user's; SQLite has one writer anyway."""
    if tx.dialect.name == "postgresql":
        await tx.execute(_LOCK_BUDGET, {"user": f"chat:{user_id}"})


async def tokens_used(tx: AsyncConnection, user_id: str, since: datetime) -> int:
    """Those of answers, and those that are reserved for answers under way."""
    spent = select(func.coalesce(func.sum(messages.c.tokens_used), 0))
    mine = spent.where(messages.c.user_id == user_id, messages.c.created_at >= since)
    return int((await tx.execute(mine)).scalar_one())


async def after(tx: AsyncConnection, session_id: str, number: int, limit: int) -> list[Message]:
    """The oldest beyond ``number``."""
    rows = await tx.execute(_AFTER, {"session": session_id, "beyond": number, "rows": limit})
    return [view(row) for row in rows]


async def before(tx: AsyncConnection, session_id: str, number: int | None, limit: int) -> list[Message]:
    """The newest before ``number``, newest first."""
    mine = messages.c.session_id == session_id
    if number is not None:
        mine = and_(mine, messages.c.number < number)
    rows = await tx.execute(select(messages).where(mine).order_by(messages.c.number.desc()).limit(limit))
    return [view(row) for row in rows]


async def said_lately(
    tx: AsyncConnection, session_id: str, sender_id: str, since: datetime, limit: int
) -> Sequence[str]:
    """What somebody has written there since then, the oldest first."""
    mine = and_(messages.c.session_id == session_id, messages.c.sender_id == sender_id, messages.c.created_at >= since)
    found = select(messages.c.text).where(mine).order_by(messages.c.number.desc()).limit(limit)
    return list(reversed((await tx.execute(found)).scalars().all()))


async def last_question(tx: AsyncConnection, session_id: str) -> Message | None:
    mine = and_(messages.c.session_id == session_id, messages.c.role == "user")
    row = (await tx.execute(select(messages).where(mine).order_by(messages.c.number.desc()).limit(1))).one_or_none()
    return None if row is None else view(row)


def view(row: Row[Any]) -> Message:
    return Message(
        message_id=row.message_id,
        session_id=row.session_id,
        number=row.number,
        role=row.role,
        text=row.text,
        status="incomplete" if row.status == "incomplete" else "complete",
        created_at=row.created_at,
        correlation_id=row.correlation_id,
        sender_id=row.sender_id,
        reply_to=row.reply_to,
        error=row.error,
        attempt=max(1, row.attempt),
    )


async def forget_before(tx: AsyncConnection, moment: datetime) -> int:
    """Drop what is older; a session stays as long as it has messages, or is young."""
    gone = (await tx.execute(delete(messages).where(messages.c.created_at < moment))).rowcount
    await tx.execute(delete(handovers).where(handovers.c.created_at < moment))
    used = select(messages.c.message_id).where(messages.c.session_id == sessions.c.session_id).exists()
    old = and_(sessions.c.created_at < moment, ~used)
    await tx.execute(delete(marks).where(marks.c.session_id.in_(select(sessions.c.session_id).where(old))))
    await tx.execute(delete(sessions).where(old))
    return gone


async def forget_user(tx: AsyncConnection, user_id: str) -> None:
    """His questions and their answers go; of what he wrote to others the words do."""
    own = select(sessions.c.session_id).where(sessions.c.owner_id == user_id, sessions.c.kind == "desk")
    await tx.execute(delete(messages).where(messages.c.session_id.in_(own)))
    await tx.execute(delete(handovers).where(handovers.c.session_id.in_(own)))
    await tx.execute(delete(sessions).where(sessions.c.owner_id == user_id, sessions.c.kind == "desk"))
    await tx.execute(update(messages).where(messages.c.sender_id == user_id).values(text=""))


# -- marks


async def marks_of(tx: AsyncConnection, session_id: str) -> list[Marks]:
    rows = await tx.execute(select(marks).where(marks.c.session_id == session_id).order_by(marks.c.user_id))
    return [Marks(user_id=row.user_id, delivered=row.delivered, read=row.read) for row in rows]


async def mark(tx: AsyncConnection, session_id: str, user_id: str, *, delivered: int, read: int) -> Marks | None:
    """Marks only go up; None when they were there already. What is read was delivered."""
    delivered = max(delivered, read)
    await insert_ignore(tx, marks, {"session_id": session_id, "user_id": user_id, "delivered": 0, "read": 0})
    mine = and_(marks.c.session_id == session_id, marks.c.user_id == user_id)
    more = or_(marks.c.delivered < delivered, marks.c.read < read)
    row = (await tx.execute(select(marks).where(mine).with_for_update())).one()
    raised = {"delivered": max(row.delivered, delivered), "read": max(row.read, read)}
    changed = (await tx.execute(update(marks).where(mine, more).values(**raised))).rowcount == 1
    return Marks(user_id=user_id, **raised) if changed else None


# -- what waits for a person


class Handover(Struct, frozen=True, kw_only=True):
    handover_id: str
    session_id: str
    message_id: str
    user_id: str
    reason: str
    created_at: datetime


async def hand_over(tx: AsyncConnection, handover: Handover) -> bool:
    """False: the session waits for a person already."""
    return await insert_ignore(tx, handovers, {name: getattr(handover, name) for name in handover.__struct_fields__})


async def waiting_handovers(tx: AsyncConnection, limit: int) -> list[Handover]:
    """The oldest first."""
    columns = [handovers.c[name] for name in Handover.__struct_fields__]
    rows = select(*columns).where(handovers.c.closed_at.is_(None)).order_by(handovers.c.created_at).limit(limit)
    return [Handover(**row._mapping) for row in await tx.execute(rows)]


async def close_handover(tx: AsyncConnection, session_id: str, now: datetime) -> bool:
    mine = and_(handovers.c.session_id == session_id, handovers.c.closed_at.is_(None))
    return (await tx.execute(update(handovers).where(mine).values(closed_at=now))).rowcount == 1


async def sessions_begun(tx: AsyncConnection, user_id: str) -> int:
    """Those of his questions; the ones of his rides are not his doing."""
    mine = and_(sessions.c.owner_id == user_id, sessions.c.kind == "desk")
    return int((await tx.execute(select(func.count()).select_from(sessions).where(mine))).scalar_one())


async def sessions_of(tx: AsyncConnection, user_id: str, limit: int) -> list[Session]:
    """The newest first."""
    mine = or_(sessions.c.owner_id == user_id, sessions.c.other_id == user_id)
    rows = select(*_SESSION).where(mine).order_by(sessions.c.created_at.desc()).limit(limit)
    return [Session(**row._mapping) for row in await tx.execute(rows)]


async def questions_of(tx: AsyncConnection, session_id: str, turns: int) -> list[Row[Any]]:
    """The last messages that were said, oldest first, for the history of a question."""
    mine = and_(messages.c.session_id == session_id, messages.c.text != "")
    rows = (await tx.execute(select(messages).where(mine).order_by(messages.c.number.desc()).limit(turns))).all()
    return list(reversed(rows))
