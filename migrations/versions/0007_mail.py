"""mails that wait, the links that they carry, and whose address is verified

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KINDS = ("reset", "verify")


def upgrade() -> None:
    # Who is here already counts as verified: they were let in without that question, and where
    # REQUIRE_VERIFIED_EMAIL is switched on they would be locked out of their own feeds. The
    # default fills the column without rewriting the table, and goes.
    op.add_column(
        "users",
        sa.Column("verified_dt", sa.DateTime(timezone=True), server_default=sa.func.now()),
    )
    op.alter_column("users", "verified_dt", server_default=None)
    op.create_table(
        "links",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", _kind(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_dt", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_links_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_links")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_links_token_hash")),
    )
    op.create_index(op.f("ix_links_user_id_kind"), "links", ["user_id", "kind"])
    op.create_index(op.f("ix_links_expires_dt"), "links", ["expires_dt"])
    op.create_table(
        "mails",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email_key", sa.String(), nullable=False),
        sa.Column("kind", _kind(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _time("create_dt"),
        _time("due_dt"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mails")),
        sa.UniqueConstraint("email_key", "kind", name=op.f("uq_mails_email_key_kind")),
    )
    op.create_index(op.f("ix_mails_due_dt"), "mails", ["due_dt"])


def downgrade() -> None:
    op.drop_table("mails")
    op.drop_table("links")
    op.drop_column("users", "verified_dt")


def _kind() -> sa.Enum:
    return sa.Enum(*KINDS, name="kind", native_enum=False, create_constraint=True, length=16)


def _time(name: str) -> sa.Column[object]:
    now = sa.text("statement_timestamp()")
    return sa.Column(name, sa.DateTime(timezone=True), server_default=now, nullable=False)
