"""Devices that are pushed to, and how people wish to be told."""

import sqlalchemy as sa
from alembic import op

from nebengjek.sql import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "notification_wishes",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("language", sa.String(length=2), nullable=True),
        sa.Column("news", sa.Boolean(), nullable=False),
        sa.Column("push", sa.Boolean(), nullable=False),
        sa.Column("zone", sa.String(length=4), nullable=False),
        sa.Column("quiet_from", sa.String(length=5), nullable=True),
        sa.Column("quiet_until", sa.String(length=5), nullable=True),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_notification_wishes")),
    )
    op.create_table(
        "notification_devices",
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=4), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("p256dh", sa.String(length=128), nullable=True),
        sa.Column("auth", sa.String(length=64), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_notification_devices")),
    )
    op.create_index("ix_notification_devices_user_id", "notification_devices", ["user_id"])


def downgrade() -> None:
    op.drop_table("notification_devices")
    op.drop_table("notification_wishes")
