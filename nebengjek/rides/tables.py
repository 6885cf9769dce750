"""The tables of rides, and in their constraints what no timing may break."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    text,
)

from nebengjek.database import UtcDateTime, metadata

# A plain literal: with bound parameters PostgreSQL and Alembic would not recognise the index's condition.
_OPEN = text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')")
_PENDING = text("status = 'PENDING'")
_ACCEPTED = text("status = 'ACCEPTED'")

rides = Table(
    "rides",
    metadata,
    Column("ride_id", String(36), primary_key=True),
    Column("match_id", String(36), nullable=False),
    Column("driver_id", String(36), nullable=False),
    Column("passenger_id", String(36), nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("latitude", Double, nullable=False),
    Column("longitude", Double, nullable=False),
    Column("target_latitude", Double, nullable=False),
    Column("target_longitude", Double, nullable=False),
    Column("start_latitude", Double),
    Column("start_longitude", Double),
    Column("start_time", UtcDateTime),
    Column("rate_per_km", BigInteger, nullable=False),
    Column("minimum_fare", BigInteger, nullable=False),
    Column("distance_mm", BigInteger, nullable=False),
    Column("total_cost", BigInteger),
    Column("adjustment_factor", Double),
    Column("adjusted_cost", BigInteger),
    Column("admin_fee", BigInteger),
    Column("driver_payout", BigInteger),
    Column("review", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("arrived_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("cancelled_at", UtcDateTime),
    Column("cancel_reason", String(200)),
    UniqueConstraint("match_id"),
    CheckConstraint("status IN ('PICKUP', 'ONGOING', 'ARRIVED', 'COMPLETED', 'CANCELLED')", name="status"),
    CheckConstraint("driver_id <> passenger_id", name="parties"),
    CheckConstraint("distance_mm >= 0", name="distance"),
    CheckConstraint("(total_cost IS NOT NULL) = (status IN ('ARRIVED', 'COMPLETED'))", name="billed"),
    CheckConstraint(
        "total_cost IS NULL OR (adjusted_cost BETWEEN 0 AND total_cost"
        " AND admin_fee >= 0 AND driver_payout >= 0 AND admin_fee + driver_payout = adjusted_cost)",
        name="bill",
    ),
    CheckConstraint("adjustment_factor > 0 AND adjustment_factor <= 1", name="factor"),
    CheckConstraint("status IN ('PICKUP', 'CANCELLED') OR started_at IS NOT NULL", name="started"),
)
Index("uq_rides_open_driver", rides.c.driver_id, unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index("uq_rides_open_passenger", rides.c.passenger_id, unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index("ix_rides_driver", rides.c.driver_id, rides.c.ride_id)
Index("ix_rides_passenger", rides.c.passenger_id, rides.c.ride_id)
Index("ix_rides_status", rides.c.status, rides.c.created_at)

ledger = Table(
    "ledger",
    metadata,
    Column("ride_id", String(36), ForeignKey("rides.ride_id"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("distance_mm", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    CheckConstraint("distance_mm >= 0 AND cost >= 0", name="amounts"),
)

payments = Table(
    "payments",
    metadata,
    Column("payment_id", String(36), primary_key=True),
    Column("ride_id", String(36), ForeignKey("rides.ride_id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("method", String(32)),
    Column("attempts", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("paid_at", UtcDateTime),
    UniqueConstraint("ride_id"),
    CheckConstraint("status IN ('PENDING', 'ACCEPTED', 'REJECTED', 'OVERDUE')", name="status"),
    CheckConstraint("amount >= 0 AND attempts >= 0", name="amounts"),
    CheckConstraint("(paid_at IS NOT NULL) = (status = 'ACCEPTED')", name="paid"),
)

payment_attempts = Table(
    "payment_attempts",
    metadata,
    Column("payment_id", String(36), ForeignKey("payments.payment_id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("ride_id", String(36), ForeignKey("rides.ride_id"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("method", String(32), nullable=False),
    Column("reason", String(200)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    CheckConstraint("status IN ('PENDING', 'ACCEPTED', 'REJECTED')", name="status"),
    CheckConstraint("(finished_at IS NULL) = (status = 'PENDING')", name="finished"),
)
Index(
    "uq_payment_attempts_open",
    payment_attempts.c.payment_id,
    unique=True,
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)
Index(
    "uq_payment_attempts_accepted",
    payment_attempts.c.payment_id,
    unique=True,
    sqlite_where=_ACCEPTED,
    postgresql_where=_ACCEPTED,
)
