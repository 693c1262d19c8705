"""accounts that leave, and deleted comments without an author

Revision ID: 0011
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("leaving_dt", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_users_leaving_dt",
        "users",
        ["leaving_dt"],
        postgresql_where=sa.text("leaving_dt IS NOT NULL"),
    )
    op.alter_column("comments", "author_id", nullable=True)
    op.create_check_constraint(
        op.f("ck_comments_kept_has_an_author"),
        "comments",
        "author_id IS NOT NULL OR deleted_dt IS NOT NULL",
    )


def downgrade() -> None:
    # They hold the place of others' replies, and nobody is told whose they are: the feed's author
    # will do, who can restore none of them, as they have no words.
    op.execute(
        """
        UPDATE comments SET author_id = feeds.author_id
        FROM feeds WHERE feeds.id = feed_id AND comments.author_id IS NULL
        """
    )
    op.drop_constraint(op.f("ck_comments_kept_has_an_author"), "comments", type_="check")
    op.alter_column("comments", "author_id", nullable=False)
    op.drop_index(
        "ix_users_leaving_dt",
        table_name="users",
        postgresql_where=sa.text("leaving_dt IS NOT NULL"),
    )
    op.drop_column("users", "leaving_dt")
