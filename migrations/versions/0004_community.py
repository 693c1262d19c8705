"""comments, likes, follows; feeds with counts, a history, and a way back

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "follows",
        sa.Column("follower_id", sa.BigInteger(), nullable=False),
        sa.Column("followed_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("follower_id <> followed_id", name=op.f("ck_follows_not_oneself")),
        sa.ForeignKeyConstraint(
            ["followed_id"], ["users.id"], name=op.f("fk_follows_followed_id_users")
        ),
        sa.ForeignKeyConstraint(
            ["follower_id"], ["users.id"], name=op.f("fk_follows_follower_id_users")
        ),
        sa.PrimaryKeyConstraint("follower_id", "followed_id", name=op.f("pk_follows")),
    )
    op.create_index(
        op.f("ix_follows_followed_id_create_dt_follower_id"),
        "follows",
        ["followed_id", "create_dt", "follower_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_follows_follower_id_create_dt_followed_id"),
        "follows",
        ["follower_id", "create_dt", "followed_id"],
        unique=False,
    )
    op.create_table(
        "comments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("feed_id", sa.BigInteger(), nullable=False),
        sa.Column("author_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("root_id", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("like_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reply_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("deleted_dt", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "update_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["author_id"], ["users.id"], name=op.f("fk_comments_author_id_users")
        ),
        sa.ForeignKeyConstraint(
            ["feed_id"], ["feeds.id"], name=op.f("fk_comments_feed_id_feeds"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["comments.id"],
            name=op.f("fk_comments_parent_id_comments"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comments")),
    )
    op.create_index(
        op.f("ix_comments_author_id_create_dt_id"),
        "comments",
        ["author_id", "create_dt", "id"],
        unique=False,
    )
    op.create_index(
        "ix_comments_deleted_dt",
        "comments",
        ["deleted_dt"],
        unique=False,
        postgresql_where=sa.text("deleted_dt IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_comments_feed_id_create_dt_id"),
        "comments",
        ["feed_id", "create_dt", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_comments_parent_id"), "comments", ["parent_id"], unique=False)
    op.create_index(
        "ix_comments_roots",
        "comments",
        ["feed_id", "create_dt", "id"],
        postgresql_where=sa.text("parent_id IS NULL"),
    )
    op.create_index(op.f("ix_comments_root_id_path"), "comments", ["root_id", "path"], unique=False)
    op.create_table(
        "feed_likes",
        sa.Column("feed_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["feed_id"], ["feeds.id"], name=op.f("fk_feed_likes_feed_id_feeds"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_feed_likes_user_id_users")
        ),
        sa.PrimaryKeyConstraint("feed_id", "user_id", name=op.f("pk_feed_likes")),
    )
    op.create_index(
        op.f("ix_feed_likes_feed_id_create_dt_user_id"),
        "feed_likes",
        ["feed_id", "create_dt", "user_id"],
        unique=False,
    )
    op.create_index(op.f("ix_feed_likes_user_id"), "feed_likes", ["user_id"], unique=False)
    op.create_table(
        "feed_revisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("feed_id", sa.BigInteger(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("image_ids", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["feed_id"],
            ["feeds.id"],
            name=op.f("fk_feed_revisions_feed_id_feeds"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_revisions")),
    )
    op.create_index(op.f("ix_feed_revisions_feed_id"), "feed_revisions", ["feed_id"], unique=False)
    op.create_table(
        "comment_likes",
        sa.Column("comment_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["comment_id"],
            ["comments.id"],
            name=op.f("fk_comment_likes_comment_id_comments"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_comment_likes_user_id_users")
        ),
        sa.PrimaryKeyConstraint("comment_id", "user_id", name=op.f("pk_comment_likes")),
    )
    op.create_index(op.f("ix_comment_likes_user_id"), "comment_likes", ["user_id"], unique=False)
    op.add_column(
        "feeds", sa.Column("like_count", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column(
        "feeds", sa.Column("comment_count", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("feeds", sa.Column("deleted_dt", sa.DateTime(timezone=True), nullable=True))
    op.drop_index(op.f("ix_feeds_author_id"), table_name="feeds")
    _index_lists(deleted_dt_is_null=True)
    op.create_index(
        op.f("ix_feeds_author_id_create_dt_id"),
        "feeds",
        ["author_id", "create_dt", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_dt IS NULL"),
    )
    op.create_index(
        "ix_feeds_deleted",
        "feeds",
        ["author_id", "deleted_dt"],
        unique=False,
        postgresql_where=sa.text("deleted_dt IS NOT NULL"),
    )
    op.create_index(
        "ix_feeds_deleted_dt",
        "feeds",
        ["deleted_dt"],
        unique=False,
        postgresql_where=sa.text("deleted_dt IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_feeds_deleted_dt",
        table_name="feeds",
        postgresql_where=sa.text("deleted_dt IS NOT NULL"),
    )
    op.drop_index(
        "ix_feeds_deleted", table_name="feeds", postgresql_where=sa.text("deleted_dt IS NOT NULL")
    )
    op.drop_index(
        op.f("ix_feeds_author_id_create_dt_id"),
        table_name="feeds",
        postgresql_where=sa.text("deleted_dt IS NULL"),
    )
    op.create_index(op.f("ix_feeds_author_id"), "feeds", ["author_id"], unique=False)
    # What was deleted stays so; its images go by themselves.
    op.execute(
        """
        UPDATE images SET state = 'condemned', feed_id = NULL, reap_dt = now()
        FROM feeds WHERE feeds.id = feed_id AND deleted_dt IS NOT NULL
        """
    )
    op.execute("DELETE FROM feeds WHERE deleted_dt IS NOT NULL")
    _index_lists(deleted_dt_is_null=False)
    op.drop_column("feeds", "deleted_dt")
    op.drop_column("feeds", "comment_count")
    op.drop_column("feeds", "like_count")
    op.drop_index(op.f("ix_comment_likes_user_id"), table_name="comment_likes")
    op.drop_table("comment_likes")
    op.drop_index(op.f("ix_feed_revisions_feed_id"), table_name="feed_revisions")
    op.drop_table("feed_revisions")
    op.drop_index(op.f("ix_feed_likes_user_id"), table_name="feed_likes")
    op.drop_index(op.f("ix_feed_likes_feed_id_create_dt_user_id"), table_name="feed_likes")
    op.drop_table("feed_likes")
    op.drop_index(op.f("ix_comments_root_id_path"), table_name="comments")
    op.drop_index("ix_comments_roots", table_name="comments")
    op.drop_index(op.f("ix_comments_parent_id"), table_name="comments")
    op.drop_index(op.f("ix_comments_feed_id_create_dt_id"), table_name="comments")
    op.drop_index(
        "ix_comments_deleted_dt",
        table_name="comments",
        postgresql_where=sa.text("deleted_dt IS NOT NULL"),
    )
    op.drop_index(op.f("ix_comments_author_id_create_dt_id"), table_name="comments")
    op.drop_table("comments")
    op.drop_index(op.f("ix_follows_follower_id_create_dt_followed_id"), table_name="follows")
    op.drop_index(op.f("ix_follows_followed_id_create_dt_follower_id"), table_name="follows")
    op.drop_table("follows")


def _index_lists(*, deleted_dt_is_null: bool) -> None:
    where = sa.text("deleted_dt IS NULL") if deleted_dt_is_null else None
    for column in ("create_dt", "update_dt"):
        name = op.f(f"ix_feeds_{column}_id")
        op.drop_index(name, table_name="feeds")
        op.create_index(name, "feeds", [column, "id"], postgresql_where=where)
