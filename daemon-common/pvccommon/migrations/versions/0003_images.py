"""images: what a VM's disk can start from"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "image",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=True),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("percent", sa.Float(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("name", name=op.f("uq_image_name")),
    )
    op.create_table(
        "image_volume",
        sa.Column("image", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("disk_id", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("volume", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image"], ["image.id"], name=op.f("fk_image_volume_image"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("image", "position", name=op.f("pk_image_volume")),
    )
    op.add_column("profile", sa.Column("image_id", sa.Integer(), nullable=True))
    op.create_foreign_key(op.f("fk_profile_image_id"), "profile", "image", ["image_id"], ["id"])
    op.add_column("vm", sa.Column("media", sa.JSON(), nullable=False, server_default="[]"))
    op.alter_column("vm", "media", server_default=None)


def downgrade() -> None:
    op.drop_column("vm", "media")
    op.drop_constraint(op.f("fk_profile_image_id"), "profile", type_="foreignkey")
    op.drop_column("profile", "image_id")
    op.drop_table("image_volume")
    op.drop_table("image")
