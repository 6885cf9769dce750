"""What chat remembers: sessions, their messages, what was read, what waits for a person."""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint, text

from nebengjek.database import UtcDateTime
from nebengjek.sql import tables

metadata = tables()

_OPEN = text("closed_at IS NULL")

sessions = Table(
    "chat_sessions",
    metadata,
    Column("session_id", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("owner_id", String(64), nullable=False),
    Column("other_id", String(64)),
    Column("last_number", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("closes_at", UtcDateTime),
    CheckConstraint("kind IN ('desk', 'ride')", name="kind"),
    CheckConstraint("(other_id IS NOT NULL) = (kind = 'ride')", name="parties"),
)
"""``desk``: a user's questions. ``ride``: of passenger (owner) and driver (other). ``last_number``: of messages."""
Index("ix_chat_sessions_owner", sessions.c.owner_id, sessions.c.created_at)

messages = Table(
    "chat_messages",
    metadata,
    Column("message_id", String(64), primary_key=True),
    Column("session_id", String(64), ForeignKey("chat_sessions.session_id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("sender_id", String(64)),
    Column("user_id", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reply_to", String(64)),
    Column("correlation_id", String(64), nullable=False),
    Column("model", String(100)),
    Column("tokens_used", Integer, nullable=False),
    Column("finish_reason", String(16)),
    Column("error", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("session_id", "number"),
    UniqueConstraint("reply_to"),
    CheckConstraint("role IN ('user', 'assistant', 'operator')", name="role"),
    CheckConstraint("status IN ('open', 'complete', 'incomplete', 'broken')", name="status"),
)
"""``open``: a question without an answer; ``broken``: its answer is incomplete. ``user_id``: whose budget it is.

``tokens_used`` of an open question: those reserved for its answer.
"""
Index("ix_chat_messages_user", messages.c.user_id, messages.c.created_at)
_WAITS = text("status = 'open'")
Index("ix_chat_messages_open", messages.c.created_at, sqlite_where=_WAITS, postgresql_where=_WAITS)

marks = Table(
    "chat_marks",
    metadata,
    Column("session_id", String(64), ForeignKey("chat_sessions.session_id"), primary_key=True),
    Column("user_id", String(64), primary_key=True),
    Column("delivered", Integer, nullable=False),
    Column("read", Integer, nullable=False),
)

handovers = Table(
    "chat_handovers",
    metadata,
    Column("handover_id", String(36), primary_key=True),
    Column("session_id", String(64), ForeignKey("chat_sessions.session_id"), nullable=False),
    Column("message_id", String(64), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("reason", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime),
)
"""What the assistant could not answer and a person has to."""
Index("uq_chat_handovers_open", handovers.c.session_id, unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
