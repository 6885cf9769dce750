"""The bus's tables: what is still to be published, what has been handled, what could not be."""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from nebengjek.sql import metadata

_Id = BigInteger().with_variant(Integer, "sqlite")

outbox = Table(
    "outbox",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("subject", String(255), nullable=False),
    Column("headers", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("module", String(64), nullable=False, server_default=""),
)
"""A row is an event that a committed transaction said; it goes when the event is safe. ``module``: who says it."""

outbox_lease = Table(
    "outbox_lease",
    metadata,
    Column("module", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("until", Float, nullable=False),
)
"""A row for each module: the pod that relays its events at present."""

inbox = Table(
    "inbox",
    metadata,
    Column("consumer", String(255), primary_key=True),
    Column("message_id", String(255), primary_key=True),
    Column("handled_at", Float, nullable=False),
)
Index("ix_inbox_handled_at", inbox.c.handled_at)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("message_id", String(600), primary_key=True),
    Column("subject", String(600), nullable=False),
    Column("headers", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
)
"""The dead letters of a bus that lives in one process: that process may end, they may not."""
