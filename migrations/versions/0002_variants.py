"""variants, alternative text, colour and placeholder of images; keys sorted by bytes

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("original_id", sa.BigInteger(), nullable=True))
    op.add_column("images", sa.Column("alt", sa.String(), server_default="", nullable=False))
    op.add_column("images", sa.Column("color", sa.String(), nullable=True))
    op.add_column("images", sa.Column("placeholder", sa.String(), nullable=True))
    op.alter_column("images", "key", type_=sa.String(collation="C"), existing_nullable=False)
    op.create_index(op.f("ix_images_original_id"), "images", ["original_id"])
    op.create_foreign_key(
        op.f("fk_images_original_id_images"),
        "images",
        "images",
        ["original_id"],
        ["id"],
        ondelete="SET NULL",
    )


def downgrade() -> None:
    op.alter_column("images", "key", type_=sa.String(), existing_nullable=False)
    op.drop_constraint(op.f("fk_images_original_id_images"), "images", type_="foreignkey")
    op.drop_index(op.f("ix_images_original_id"), table_name="images")
    for column in ("placeholder", "color", "alt", "original_id"):
        op.drop_column("images", column)
