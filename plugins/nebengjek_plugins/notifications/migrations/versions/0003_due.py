"""What waits for the morning."""

import sqlalchemy as sa
from alembic import op

from nebengjek.sql import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("notifications", sa.Column("due_at", UtcDateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_notifications_due_at",
        "notifications",
        ["due_at"],
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_notifications_due_at", "notifications")
    op.drop_column("notifications", "due_at")
