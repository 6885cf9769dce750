"""What notifications remember: where people are reached, how they wish to be, and what was sent."""

from sqlalchemy import Boolean, Column, Index, Integer, String, Table, Text

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
    Column("due_at", UtcDateTime),
)
"""One for each cause; ``sent_at``: the mail server took it; ``due_at``: until then it waits, in nobody's queue."""
Index("ix_notifications_created_at", notices.c.created_at)
_WAITING = notices.c.due_at.is_not(None)
Index("ix_notifications_due_at", notices.c.due_at, sqlite_where=_WAITING, postgresql_where=_WAITING)

wishes = Table(
    "notification_wishes",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("language", String(2)),
    Column("news", Boolean, nullable=False),
    Column("push", Boolean, nullable=False),
    Column("zone", String(4), nullable=False),
    Column("quiet_from", String(5)),
    Column("quiet_until", String(5)),
)
"""Who has said nothing has no row. ``news``: mails that are not about a ride."""

devices = Table(
    "notification_devices",
    metadata,
    Column("device_id", String(32), primary_key=True),
    Column("user_id", String(36), nullable=False),
    Column("kind", String(4), nullable=False),
    Column("address", Text, nullable=False),
    Column("p256dh", String(128)),
    Column("auth", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
)
"""``kind``: ``web`` (``address`` is the push service's) or ``fcm`` (a token); the keys are those of the browser."""
Index("ix_notification_devices_user_id", devices.c.user_id)
