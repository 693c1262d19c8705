"""images that clients upload by themselves, whether objects are there, and what a user keeps

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow("incoming", "pending", "attached", "condemned")
    op.add_column(
        "images", sa.Column("stored", sa.Boolean(), server_default=sa.true(), nullable=False)
    )
    op.alter_column("images", "stored", server_default=sa.false())
    op.drop_index(op.f("ix_images_owner_id"), table_name="images")
    op.create_index(
        op.f("ix_images_owner_id"), "images", ["owner_id"], postgresql_include=["bytes", "state"]
    )


def downgrade() -> None:
    # Their objects are for `images fsck` to find.
    op.execute("DELETE FROM images WHERE state = 'incoming'")
    op.drop_column("images", "stored")
    _allow("pending", "attached", "condemned")
    op.drop_index(op.f("ix_images_owner_id"), table_name="images")
    op.create_index(op.f("ix_images_owner_id"), "images", ["owner_id"])


def _allow(*states: str) -> None:
    op.drop_constraint(op.f("ck_images_state"), "images", type_="check")
    listed = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint(op.f("ck_images_state"), "images", f"state IN ({listed})")
