"""What notifications remember: where people are reached, and what was sent."""

from sqlalchemy import Boolean, Column, Index, Integer, String, Table

from nebengjek.database import UtcDateTime
from nebengjek.sql import tables

metadata = tables()

contacts = Table(
    "notification_contacts",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("email", String(254)),
    Column("full_name", String(100)),
    Column("deleted", Boolean, nullable=False),
)
"""``version``: the newest that was heard of the user."""

notices = Table(
    "notifications",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("cause", String(64), primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("sent_at", UtcDateTime),
)
"""One for each cause; ``sent_at``: the server took it."""
Index("ix_notifications_created_at", notices.c.created_at)
