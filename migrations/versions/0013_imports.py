"""boards that were brought in, and passwords that were hashed elsewhere

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_KINDS = ("users", "avatars", "feeds", "comments", "likes", "follows")


def upgrade() -> None:
    op.create_table(
        "imports",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("feeds_after", sa.BigInteger(), nullable=False),
        sa.Column("feeds_until", sa.BigInteger(), nullable=False),
        sa.Column(
            "create_dt",
            sa.DateTime(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imports")),
        sa.UniqueConstraint("name", name=op.f("uq_imports_name")),
    )
    op.create_table(
        "imported",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("import_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("old_id", sa.String(), nullable=False),
        sa.Column("new_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(sa.column("kind").in_(_KINDS), name=op.f("ck_imported_kind")),
        sa.ForeignKeyConstraint(
            ["import_id"],
            ["imports.id"],
            name=op.f("fk_imported_import_id_imports"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imported")),
        sa.UniqueConstraint(
            "import_id", "kind", "old_id", name=op.f("uq_imported_import_id_kind_old_id")
        ),
    )
    op.create_index(
        "ix_users_bcrypt",
        "users",
        [sa.text("substr(password_hash, 5, 2)")],
        postgresql_where=sa.text("password_hash LIKE '$2%'"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_users_bcrypt",
        table_name="users",
        postgresql_where=sa.text("password_hash LIKE '$2%'"),
    )
    op.drop_table("imported")
    op.drop_table("imports")
