"""Sessions, messages, marks, handovers."""

import sqlalchemy as sa
from alembic import op

from nebengjek.sql import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "chat_sessions",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("other_id", sa.String(length=64), nullable=True),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("closes_at", UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(other_id IS NOT NULL) = (kind = 'ride')", name=op.f("ck_chat_sessions_parties")),
        sa.CheckConstraint("kind IN ('desk', 'ride')", name=op.f("ck_chat_sessions_kind")),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_chat_sessions")),
    )
    op.create_index("ix_chat_sessions_owner", "chat_sessions", ["owner_id", "created_at"], unique=False)
    op.create_table(
        "chat_handovers",
        sa.Column("handover_id", sa.String(length=36), nullable=False),
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("closed_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["chat_sessions.session_id"], name=op.f("fk_chat_handovers_session_id_chat_sessions")
        ),
        sa.PrimaryKeyConstraint("handover_id", name=op.f("pk_chat_handovers")),
    )
    op.create_index(
        "uq_chat_handovers_open",
        "chat_handovers",
        ["session_id"],
        unique=True,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "chat_marks",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("delivered", sa.Integer(), nullable=False),
        sa.Column("read", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["chat_sessions.session_id"], name=op.f("fk_chat_marks_session_id_chat_sessions")
        ),
        sa.PrimaryKeyConstraint("session_id", "user_id", name=op.f("pk_chat_marks")),
    )
    op.create_table(
        "chat_messages",
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("sender_id", sa.String(length=64), nullable=True),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reply_to", sa.String(length=64), nullable=True),
        sa.Column("correlation_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=True),
        sa.Column("tokens_used", sa.Integer(), nullable=False),
        sa.Column("finish_reason", sa.String(length=16), nullable=True),
        sa.Column("error", sa.String(length=64), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role IN ('user', 'assistant', 'operator')", name=op.f("ck_chat_messages_role")),
        sa.CheckConstraint(
            "status IN ('open', 'complete', 'incomplete', 'broken')", name=op.f("ck_chat_messages_status")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["chat_sessions.session_id"], name=op.f("fk_chat_messages_session_id_chat_sessions")
        ),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_chat_messages")),
        sa.UniqueConstraint("reply_to", name=op.f("uq_chat_messages_reply_to")),
        sa.UniqueConstraint("session_id", "number", name=op.f("uq_chat_messages_session_id_number")),
    )
    op.create_index("ix_chat_messages_user", "chat_messages", ["user_id", "created_at"], unique=False)
    op.create_index(
        "ix_chat_messages_open",
        "chat_messages",
        ["created_at"],
        unique=False,
        sqlite_where=sa.text("status = 'open'"),
        postgresql_where=sa.text("status = 'open'"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_chat_messages_open",
        table_name="chat_messages",
        sqlite_where=sa.text("status = 'open'"),
        postgresql_where=sa.text("status = 'open'"),
    )
    op.drop_index("ix_chat_messages_user", table_name="chat_messages")
    op.drop_table("chat_messages")
    op.drop_table("chat_marks")
    op.drop_index(
        "uq_chat_handovers_open",
        table_name="chat_handovers",
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_table("chat_handovers")
    op.drop_index("ix_chat_sessions_owner", table_name="chat_sessions")
    op.drop_table("chat_sessions")
