"""What profiles remember: people as the events tell of them, their pictures, the search index, who signed up when."""

from sqlalchemy import Boolean, CheckConstraint, Column, Index, Integer, String, Table, Text

from nebengjek.database import UtcDateTime
from nebengjek.sql import tables

metadata = tables()

people = Table(
    "profiles",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("role", String(10)),
    Column("msisdn_suffix", String(10)),
    Column("full_name", String(100)),
    Column("email", String(254)),
    Column("vehicle_type", String(10)),
    Column("vehicle_plate", String(12)),
    Column("avatar_version", Integer, nullable=False, server_default="0"),
    Column("avatar_token", String(32)),
    Column("deleted", Boolean, nullable=False),
    Column("created_at", UtcDateTime),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""``version``: the newest that was heard. Who left stays as an empty row, so that late news does not bring him back."""

pictures = Table(
    "profile_pictures",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("user_id", String(36), nullable=False),
    Column("version", Integer),
    Column("state", String(8), nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    CheckConstraint("state IN ('new', 'kept', 'dropped', 'gone')", name="state"),
)
"""``new``: its file is on its way; ``kept``: it is or was shown; ``dropped``: its files may go; ``gone``: they went.

``ready``: the thumbnails are there.
"""
Index("ix_profile_pictures_user", pictures.c.user_id)
Index("ix_profile_pictures_state", pictures.c.state, pictures.c.changed_at)

found = Table(
    "profile_search",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", String(36), nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    Column("role", String(10)),
    Column("msisdn_suffix", String(10)),
    Column("full_name", String(100)),
    Column("email", String(254)),
    Column("vehicle_type", String(10)),
    Column("vehicle_plate", String(12)),
    Column("words", Text, nullable=False, server_default=""),
    Column("deleted", Boolean, nullable=False),
    Column("created_at", UtcDateTime),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""``words``: what a person is found by. A full text index lies over it: FTS5, or GIN in PostgreSQL."""

signups = Table(
    "profile_signups",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("day", String(10), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
)
"""Who signed up on which day in Jakarta, and nothing else about him."""
