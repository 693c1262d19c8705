"""nicknames that are unique, biographies, avatars, and counts of followers

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

from models.nickname import nickname_key, taken_key

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BATCH = 1000


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname_key", sa.String(), nullable=True))
    op.add_column("users", sa.Column("bio", sa.String(), server_default="", nullable=False))
    for column in ("follower_count", "following_count"):
        op.add_column("users", sa.Column(column, sa.Integer(), server_default="0", nullable=False))
    _fill_keys()
    _fill_counts()
    op.alter_column("users", "nickname_key", nullable=False)
    op.create_unique_constraint(op.f("uq_users_nickname_key"), "users", ["nickname_key"])
    op.add_column("images", sa.Column("avatar_of", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        op.f("fk_images_avatar_of_users"), "images", "users", ["avatar_of"], ["id"]
    )
    op.create_index(
        op.f("ix_images_avatar_of"),
        "images",
        ["avatar_of"],
        postgresql_where="avatar_of IS NOT NULL",
    )
    op.create_index(
        "uq_images_avatar_of",
        "images",
        ["avatar_of"],
        unique=True,
        postgresql_where="original_id IS NULL",
    )
    op.drop_constraint(op.f("ck_images_attached_to_a_feed"), "images", type_="check")
    op.create_check_constraint(
        op.f("ck_images_attached_to_one"),
        "images",
        "num_nonnulls(feed_id, avatar_of) = (state = 'attached')::int",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_images_attached_to_one"), "images", type_="check")
    # No table would say whose avatars they are; they go by themselves.
    op.execute("UPDATE images SET state = 'condemned', reap_dt = now() WHERE avatar_of IS NOT NULL")
    op.create_check_constraint(
        op.f("ck_images_attached_to_a_feed"),
        "images",
        "(state = 'attached') = (feed_id IS NOT NULL)",
    )
    op.drop_column("images", "avatar_of")
    op.drop_constraint(op.f("uq_users_nickname_key"), "users", type_="unique")
    for column in ("following_count", "follower_count", "bio", "nickname_key"):
        op.drop_column("users", column)


def _fill_keys() -> None:
    """Whoever came first has the nickname's key; who came later keeps the nickname."""
    connection = op.get_bind()
    page = sa.text("SELECT id, nickname FROM users WHERE id > :after ORDER BY id LIMIT :batch")
    keep = sa.text("UPDATE users SET nickname_key = :key WHERE id = :id")
    taken, after = {""}, 0
    while users := connection.execute(page, {"after": after, "batch": BATCH}).all():
        keys = []
        for user_id, nickname in users:
            key = nickname_key(nickname)
            keys.append({"id": user_id, "key": taken_key(key, user_id) if key in taken else key})
            taken.add(key)
        connection.execute(keep, keys)
        after = users[-1].id


def _fill_counts() -> None:
    for count, column in (("follower_count", "followed_id"), ("following_count", "follower_id")):
        op.execute(
            f"""
            UPDATE users SET {count} = counted.number
            FROM (SELECT {column} AS id, count(*) AS number FROM follows GROUP BY 1) AS counted
            WHERE counted.id = users.id
            """  # noqa: S608 - of the names above
        )
