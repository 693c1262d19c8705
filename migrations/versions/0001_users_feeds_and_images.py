"""users, feeds and images

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("email_key", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("nickname", sa.String(), nullable=False),
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
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email_key", name=op.f("uq_users_email_key")),
    )
    op.create_table(
        "feeds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("author_id", sa.BigInteger(), nullable=False),
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
        sa.ForeignKeyConstraint(["author_id"], ["users.id"], name=op.f("fk_feeds_author_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feeds")),
    )
    op.create_index(op.f("ix_feeds_author_id"), "feeds", ["author_id"], unique=False)
    op.create_index(op.f("ix_feeds_create_dt_id"), "feeds", ["create_dt", "id"], unique=False)
    op.create_index(op.f("ix_feeds_update_dt_id"), "feeds", ["update_dt", "id"], unique=False)
    op.create_table(
        "images",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "attached",
                "condemned",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("feed_id", sa.BigInteger(), nullable=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.Column("reap_dt", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(state = 'attached') = (feed_id IS NOT NULL)",
            name=op.f("ck_images_attached_to_a_feed"),
        ),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_images_feed_id_feeds")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_images_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("key", name=op.f("uq_images_key")),
    )
    op.create_index(
        op.f("ix_images_feed_id_position"), "images", ["feed_id", "position"], unique=False
    )
    op.create_index(op.f("ix_images_owner_id"), "images", ["owner_id"], unique=False)
    op.create_index(
        op.f("ix_images_reap_dt"),
        "images",
        ["reap_dt"],
        unique=False,
        postgresql_where="state <> 'attached'",
    )


def downgrade() -> None:
    op.drop_index(
        op.f("ix_images_reap_dt"), table_name="images", postgresql_where="state <> 'attached'"
    )
    op.drop_index(op.f("ix_images_owner_id"), table_name="images")
    op.drop_index(op.f("ix_images_feed_id_position"), table_name="images")
    op.drop_table("images")
    op.drop_index(op.f("ix_feeds_update_dt_id"), table_name="feeds")
    op.drop_index(op.f("ix_feeds_create_dt_id"), table_name="feeds")
    op.drop_index(op.f("ix_feeds_author_id"), table_name="feeds")
    op.drop_table("feeds")
    op.drop_table("users")
