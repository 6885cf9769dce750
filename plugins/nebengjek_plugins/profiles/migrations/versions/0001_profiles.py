"""People, pictures, the search index, sign-ups."""

import sqlalchemy as sa
from alembic import op

from nebengjek.sql import UtcDateTime
from nebengjek_plugins.profiles.fulltext import make_index

revision = "0001"
down_revision = None


def _person() -> list[sa.Column[object]]:
    return [
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=True),
        sa.Column("msisdn_suffix", sa.String(length=10), nullable=True),
        sa.Column("full_name", sa.String(length=100), nullable=True),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("vehicle_type", sa.String(length=10), nullable=True),
        sa.Column("vehicle_plate", sa.String(length=12), nullable=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "profiles",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("avatar_version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("avatar_token", sa.String(length=32), nullable=True),
        *_person(),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_profiles")),
    )
    op.create_table(
        "profile_pictures",
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("ready", sa.Boolean(), nullable=False),
        sa.Column("changed_at", UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('new', 'kept', 'dropped', 'gone')", name=op.f("ck_profile_pictures_state")),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_profile_pictures")),
    )
    op.create_index("ix_profile_pictures_user", "profile_pictures", ["user_id"])
    op.create_index("ix_profile_pictures_state", "profile_pictures", ["state", "changed_at"])
    op.create_table(
        "profile_search",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("words", sa.Text(), server_default="", nullable=False),
        *_person(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_profile_search")),
        sa.UniqueConstraint("user_id", name=op.f("uq_profile_search_user_id")),
    )
    make_index(op.get_bind())
    op.create_table(
        "profile_signups",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_profile_signups")),
    )
    op.create_index(op.f("ix_profile_signups_day"), "profile_signups", ["day"])


def downgrade() -> None:
    for table in ("profile_signups", "profile_search", "profile_pictures", "profiles"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE IF EXISTS profile_search_text")
