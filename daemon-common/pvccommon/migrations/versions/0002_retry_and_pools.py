"""retries, volumes kept of failed builds, pools made through the API"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ceph_pool",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ceph_pool")),
    )
    op.add_column(
        "build", sa.Column("keep_on_failure", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.alter_column("build", "keep_on_failure", server_default=None)
    op.add_column("build", sa.Column("retry_of", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("build", "retry_of")
    op.drop_column("build", "keep_on_failure")
    op.drop_table("ceph_pool")
