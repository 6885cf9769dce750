"""Each module's events are relayed by a pod that runs it: rows and leases name the module."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("outbox", sa.Column("module", sa.String(length=64), server_default="", nullable=False))
    op.drop_table("outbox_lease")
    op.create_table(
        "outbox_lease",
        sa.Column("module", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("module", name=op.f("pk_outbox_lease")),
    )


def downgrade() -> None:
    op.drop_table("outbox_lease")
    op.create_table(
        "outbox_lease",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_lease")),
    )
    op.drop_column("outbox", "module")
