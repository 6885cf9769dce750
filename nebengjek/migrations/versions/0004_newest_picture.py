"""Match knows which of a driver's pictures it shows."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("beacons", sa.Column("avatar_version", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("beacons", "avatar_version")
