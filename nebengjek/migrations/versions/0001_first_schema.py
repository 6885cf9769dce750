"""The first schema."""

import sqlalchemy as sa
from alembic import op

from nebengjek.sql import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "beacons",
        sa.Column("driver_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("presence_version", sa.Integer(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("vehicle_type", sa.String(length=10), nullable=True),
        sa.Column("vehicle_plate", sa.String(length=12), nullable=True),
        sa.Column("latitude", sa.Float(), nullable=True),
        sa.Column("longitude", sa.Float(), nullable=True),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("driver_id", name=op.f("pk_beacons")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("message_id", sa.String(length=600), nullable=False),
        sa.Column("subject", sa.String(length=600), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_dead_letters")),
    )
    op.create_table(
        "engaged",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("match_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_engaged")),
    )
    op.create_index(op.f("ix_engaged_match_id"), "engaged", ["match_id"], unique=False)
    op.create_table(
        "engagements",
        sa.Column("match_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("match_id", "user_id", name=op.f("pk_engagements")),
    )
    op.create_index(op.f("ix_engagements_user_id"), "engagements", ["user_id"], unique=False)
    op.create_table(
        "finders",
        sa.Column("passenger_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("passenger_id", name=op.f("pk_finders")),
    )
    op.create_table(
        "flags",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("last_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "kind", name=op.f("pk_flags")),
    )
    op.create_table(
        "inbox",
        sa.Column("consumer", sa.String(length=255), nullable=False),
        sa.Column("message_id", sa.String(length=255), nullable=False),
        sa.Column("handled_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", "message_id", name=op.f("pk_inbox")),
    )
    op.create_index("ix_inbox_handled_at", "inbox", ["handled_at"], unique=False)
    op.create_table(
        "matches",
        sa.Column("match_id", sa.String(length=36), nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=False),
        sa.Column("passenger_id", sa.String(length=36), nullable=False),
        sa.Column("driver_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(length=10), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("latitude", sa.Float(), nullable=False),
        sa.Column("longitude", sa.Float(), nullable=False),
        sa.Column("driver_latitude", sa.Float(), nullable=False),
        sa.Column("driver_longitude", sa.Float(), nullable=False),
        sa.Column("target_latitude", sa.Float(), nullable=False),
        sa.Column("target_longitude", sa.Float(), nullable=False),
        sa.Column("distance_km", sa.Float(), nullable=False),
        sa.Column("eta_minutes", sa.Integer(), nullable=False),
        sa.Column("estimated_fare", sa.Integer(), nullable=False),
        sa.Column("driver_name", sa.String(length=100), nullable=False),
        sa.Column("vehicle_type", sa.String(length=10), nullable=False),
        sa.Column("vehicle_plate", sa.String(length=12), nullable=False),
        sa.Column("passenger_name", sa.String(length=100), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("check_at", UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('PENDING', 'DRIVER_CONFIRMED', 'PASSENGER_CONFIRMED', 'ACCEPTED', 'REJECTED', 'EXPIRED', 'CLOSED', 'FAILED')",
            name=op.f("ck_matches_status"),
        ),
        sa.CheckConstraint("driver_id <> passenger_id", name=op.f("ck_matches_two_people")),
        sa.PrimaryKeyConstraint("match_id", name=op.f("pk_matches")),
        sa.UniqueConstraint("search_id", "driver_id", name=op.f("uq_matches_search_id_driver_id")),
    )
    op.create_index(
        "ix_matches_check_at",
        "matches",
        ["check_at"],
        unique=False,
        sqlite_where=sa.text("check_at IS NOT NULL"),
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_matches_driver_id"), "matches", ["driver_id"], unique=False)
    op.create_index(
        "ix_matches_expires_at",
        "matches",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("status IN ('PENDING', 'DRIVER_CONFIRMED', 'PASSENGER_CONFIRMED')"),
        postgresql_where=sa.text("status IN ('PENDING', 'DRIVER_CONFIRMED', 'PASSENGER_CONFIRMED')"),
    )
    op.create_index(op.f("ix_matches_passenger_id"), "matches", ["passenger_id"], unique=False)
    op.create_table(
        "odometer",
        sa.Column("ride_id", sa.String(length=36), nullable=False),
        sa.Column("driver_id", sa.String(length=36), nullable=False),
        sa.Column("passenger_id", sa.String(length=36), nullable=False),
        sa.Column("pickup", sa.Text(), nullable=True),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("start", sa.Text(), nullable=True),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("total_km", sa.Float(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("anchor", sa.Text(), nullable=True),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.Column("review", sa.Boolean(), nullable=False),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("ride_id", name=op.f("pk_odometer")),
    )
    op.create_index(
        "ix_odometer_open",
        "odometer",
        ["ended"],
        unique=False,
        sqlite_where=sa.text("NOT ended"),
        postgresql_where=sa.text("NOT ended"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "outbox_lease",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_lease")),
    )
    op.create_table(
        "payments_due",
        sa.Column("ride_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("paid", sa.Boolean(), nullable=False),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("ride_id", name=op.f("pk_payments_due")),
    )
    op.create_index(op.f("ix_payments_due_user_id"), "payments_due", ["user_id"], unique=False)
    op.create_table(
        "rides",
        sa.Column("ride_id", sa.String(length=36), nullable=False),
        sa.Column("match_id", sa.String(length=36), nullable=False),
        sa.Column("driver_id", sa.String(length=36), nullable=False),
        sa.Column("passenger_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("latitude", sa.Double(), nullable=False),
        sa.Column("longitude", sa.Double(), nullable=False),
        sa.Column("target_latitude", sa.Double(), nullable=False),
        sa.Column("target_longitude", sa.Double(), nullable=False),
        sa.Column("start_latitude", sa.Double(), nullable=True),
        sa.Column("start_longitude", sa.Double(), nullable=True),
        sa.Column("start_time", UtcDateTime(timezone=True), nullable=True),
        sa.Column("rate_per_km", sa.BigInteger(), nullable=False),
        sa.Column("minimum_fare", sa.BigInteger(), nullable=False),
        sa.Column("distance_mm", sa.BigInteger(), nullable=False),
        sa.Column("total_cost", sa.BigInteger(), nullable=True),
        sa.Column("adjustment_factor", sa.Double(), nullable=True),
        sa.Column("adjusted_cost", sa.BigInteger(), nullable=True),
        sa.Column("admin_fee", sa.BigInteger(), nullable=True),
        sa.Column("driver_payout", sa.BigInteger(), nullable=True),
        sa.Column("review", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("started_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("arrived_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("completed_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("cancel_reason", sa.String(length=200), nullable=True),
        sa.CheckConstraint(
            "(total_cost IS NOT NULL) = (status IN ('ARRIVED', 'COMPLETED'))", name=op.f("ck_rides_billed")
        ),
        sa.CheckConstraint(
            "status IN ('PICKUP', 'CANCELLED') OR started_at IS NOT NULL", name=op.f("ck_rides_started")
        ),
        sa.CheckConstraint(
            "status IN ('PICKUP', 'ONGOING', 'ARRIVED', 'COMPLETED', 'CANCELLED')", name=op.f("ck_rides_status")
        ),
        sa.CheckConstraint("adjustment_factor > 0 AND adjustment_factor <= 1", name=op.f("ck_rides_factor")),
        sa.CheckConstraint("distance_mm >= 0", name=op.f("ck_rides_distance")),
        sa.CheckConstraint("driver_id <> passenger_id", name=op.f("ck_rides_parties")),
        sa.CheckConstraint(
            "total_cost IS NULL OR (adjusted_cost BETWEEN 0 AND total_cost AND admin_fee >= 0 AND driver_payout >= 0 AND admin_fee + driver_payout = adjusted_cost)",
            name=op.f("ck_rides_bill"),
        ),
        sa.PrimaryKeyConstraint("ride_id", name=op.f("pk_rides")),
        sa.UniqueConstraint("match_id", name=op.f("uq_rides_match_id")),
    )
    op.create_index("ix_rides_driver", "rides", ["driver_id", "ride_id"], unique=False)
    op.create_index("ix_rides_passenger", "rides", ["passenger_id", "ride_id"], unique=False)
    op.create_index("ix_rides_status", "rides", ["status", "created_at"], unique=False)
    op.create_index(
        "uq_rides_open_driver",
        "rides",
        ["driver_id"],
        unique=True,
        sqlite_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
        postgresql_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
    )
    op.create_index(
        "uq_rides_open_passenger",
        "rides",
        ["passenger_id"],
        unique=True,
        sqlite_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
        postgresql_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
    )
    op.create_table(
        "searches",
        sa.Column("search_id", sa.String(length=36), nullable=False),
        sa.Column("passenger_id", sa.String(length=36), nullable=False),
        sa.Column("finder_version", sa.Integer(), nullable=False),
        sa.Column("passenger_name", sa.String(length=100), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("latitude", sa.Float(), nullable=False),
        sa.Column("longitude", sa.Float(), nullable=False),
        sa.Column("target_latitude", sa.Float(), nullable=False),
        sa.Column("target_longitude", sa.Float(), nullable=False),
        sa.Column("vehicle_type", sa.String(length=10), nullable=True),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('OPEN', 'MATCHED', 'ENDED')", name=op.f("ck_searches_status")),
        sa.PrimaryKeyConstraint("search_id", name=op.f("pk_searches")),
    )
    op.create_index(
        "ix_searches_expires",
        "searches",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("status = 'OPEN'"),
        postgresql_where=sa.text("status = 'OPEN'"),
    )
    op.create_index(
        "uq_searches_open",
        "searches",
        ["passenger_id"],
        unique=True,
        sqlite_where=sa.text("status = 'OPEN'"),
        postgresql_where=sa.text("status = 'OPEN'"),
    )
    op.create_table(
        "simulated_charges",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_simulated_charges")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("msisdn", sa.String(length=20), nullable=True),
        sa.Column("full_name", sa.String(length=100), nullable=True),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("avatar_url", sa.String(length=500), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("beacon_active", sa.Boolean(), nullable=False),
        sa.Column("finder_active", sa.Boolean(), nullable=False),
        sa.Column("finder_version", sa.Integer(), nullable=False),
        sa.Column("finder", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('passenger', 'driver')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("msisdn", name=op.f("uq_users_msisdn")),
    )
    op.create_index("ix_users_online", "users", ["online"], unique=False)
    op.create_table(
        "drivers",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("vehicle_type", sa.String(length=10), nullable=False),
        sa.Column("vehicle_plate", sa.String(length=12), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_drivers_user_id_users")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_drivers")),
        sa.UniqueConstraint("vehicle_plate", name=op.f("uq_drivers_vehicle_plate")),
    )
    op.create_table(
        "ledger",
        sa.Column("ride_id", sa.String(length=36), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("distance_mm", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("distance_mm >= 0 AND cost >= 0", name=op.f("ck_ledger_amounts")),
        sa.ForeignKeyConstraint(["ride_id"], ["rides.ride_id"], name=op.f("fk_ledger_ride_id_rides")),
        sa.PrimaryKeyConstraint("ride_id", "sequence", name=op.f("pk_ledger")),
    )
    op.create_table(
        "payments",
        sa.Column("payment_id", sa.String(length=36), nullable=False),
        sa.Column("ride_id", sa.String(length=36), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("paid_at", UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(paid_at IS NOT NULL) = (status = 'ACCEPTED')", name=op.f("ck_payments_paid")),
        sa.CheckConstraint("status IN ('PENDING', 'ACCEPTED', 'REJECTED', 'OVERDUE')", name=op.f("ck_payments_status")),
        sa.CheckConstraint("amount >= 0 AND attempts >= 0", name=op.f("ck_payments_amounts")),
        sa.ForeignKeyConstraint(["ride_id"], ["rides.ride_id"], name=op.f("fk_payments_ride_id_rides")),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("pk_payments")),
        sa.UniqueConstraint("ride_id", name=op.f("uq_payments_ride_id")),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("session_id", sa.String(length=36), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("used_at", UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_refresh_tokens_user_id_users")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_refresh_tokens")),
    )
    op.create_index(op.f("ix_refresh_tokens_expires_at"), "refresh_tokens", ["expires_at"], unique=False)
    op.create_index(op.f("ix_refresh_tokens_session_id"), "refresh_tokens", ["session_id"], unique=False)
    op.create_table(
        "payment_attempts",
        sa.Column("payment_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ride_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(finished_at IS NULL) = (status = 'PENDING')", name=op.f("ck_payment_attempts_finished")),
        sa.CheckConstraint("status IN ('PENDING', 'ACCEPTED', 'REJECTED')", name=op.f("ck_payment_attempts_status")),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.payment_id"], name=op.f("fk_payment_attempts_payment_id_payments")
        ),
        sa.ForeignKeyConstraint(["ride_id"], ["rides.ride_id"], name=op.f("fk_payment_attempts_ride_id_rides")),
        sa.PrimaryKeyConstraint("payment_id", "attempt", name=op.f("pk_payment_attempts")),
    )
    op.create_index(
        "uq_payment_attempts_accepted",
        "payment_attempts",
        ["payment_id"],
        unique=True,
        sqlite_where=sa.text("status = 'ACCEPTED'"),
        postgresql_where=sa.text("status = 'ACCEPTED'"),
    )
    op.create_index(
        "uq_payment_attempts_open",
        "payment_attempts",
        ["payment_id"],
        unique=True,
        sqlite_where=sa.text("status = 'PENDING'"),
        postgresql_where=sa.text("status = 'PENDING'"),
    )


def downgrade() -> None:
    op.drop_index(
        "uq_payment_attempts_open",
        table_name="payment_attempts",
        sqlite_where=sa.text("status = 'PENDING'"),
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.drop_index(
        "uq_payment_attempts_accepted",
        table_name="payment_attempts",
        sqlite_where=sa.text("status = 'ACCEPTED'"),
        postgresql_where=sa.text("status = 'ACCEPTED'"),
    )
    op.drop_table("payment_attempts")
    op.drop_index(op.f("ix_refresh_tokens_session_id"), table_name="refresh_tokens")
    op.drop_index(op.f("ix_refresh_tokens_expires_at"), table_name="refresh_tokens")
    op.drop_table("refresh_tokens")
    op.drop_table("payments")
    op.drop_table("ledger")
    op.drop_table("drivers")
    op.drop_index("ix_users_online", table_name="users")
    op.drop_table("users")
    op.drop_table("simulated_charges")
    op.drop_index(
        "uq_searches_open",
        table_name="searches",
        sqlite_where=sa.text("status = 'OPEN'"),
        postgresql_where=sa.text("status = 'OPEN'"),
    )
    op.drop_index(
        "ix_searches_expires",
        table_name="searches",
        sqlite_where=sa.text("status = 'OPEN'"),
        postgresql_where=sa.text("status = 'OPEN'"),
    )
    op.drop_table("searches")
    op.drop_index(
        "uq_rides_open_passenger",
        table_name="rides",
        sqlite_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
        postgresql_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
    )
    op.drop_index(
        "uq_rides_open_driver",
        table_name="rides",
        sqlite_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
        postgresql_where=sa.text("status IN ('PICKUP', 'ONGOING', 'ARRIVED')"),
    )
    op.drop_index("ix_rides_status", table_name="rides")
    op.drop_index("ix_rides_passenger", table_name="rides")
    op.drop_index("ix_rides_driver", table_name="rides")
    op.drop_table("rides")
    op.drop_index(op.f("ix_payments_due_user_id"), table_name="payments_due")
    op.drop_table("payments_due")
    op.drop_table("outbox_lease")
    op.drop_table("outbox")
    op.drop_index(
        "ix_odometer_open",
        table_name="odometer",
        sqlite_where=sa.text("NOT ended"),
        postgresql_where=sa.text("NOT ended"),
    )
    op.drop_table("odometer")
    op.drop_index(op.f("ix_matches_passenger_id"), table_name="matches")
    op.drop_index(
        "ix_matches_expires_at",
        table_name="matches",
        sqlite_where=sa.text("status IN ('PENDING', 'DRIVER_CONFIRMED', 'PASSENGER_CONFIRMED')"),
        postgresql_where=sa.text("status IN ('PENDING', 'DRIVER_CONFIRMED', 'PASSENGER_CONFIRMED')"),
    )
    op.drop_index(op.f("ix_matches_driver_id"), table_name="matches")
    op.drop_index(
        "ix_matches_check_at",
        table_name="matches",
        sqlite_where=sa.text("check_at IS NOT NULL"),
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.drop_table("matches")
    op.drop_index("ix_inbox_handled_at", table_name="inbox")
    op.drop_table("inbox")
    op.drop_table("flags")
    op.drop_table("finders")
    op.drop_index(op.f("ix_engagements_user_id"), table_name="engagements")
    op.drop_table("engagements")
    op.drop_index(op.f("ix_engaged_match_id"), table_name="engaged")
    op.drop_table("engaged")
    op.drop_table("dead_letters")
    op.drop_table("beacons")
