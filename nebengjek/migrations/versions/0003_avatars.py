"""Who has a picture is shown with it, also where he is proposed as a driver."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("users", sa.Column("avatar_version", sa.Integer(), server_default="0", nullable=False))
    op.add_column("beacons", sa.Column("avatar_url", sa.String(length=500), nullable=True))
    op.add_column("matches", sa.Column("driver_avatar_url", sa.String(length=500), nullable=True))


def downgrade() -> None:
    op.drop_column("matches", "driver_avatar_url")
    op.drop_column("beacons", "avatar_url")
    op.drop_column("users", "avatar_version")
