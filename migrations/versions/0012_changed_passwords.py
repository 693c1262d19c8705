"""mails that tell of a changed password; a mail that went is remembered for the next one's sake

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mails", sa.Column("done_dt", sa.DateTime(timezone=True), nullable=True))
    _allow("reset", "verify", "changed")


def downgrade() -> None:
    # What went would go again.
    op.execute("DELETE FROM mails WHERE done_dt IS NOT NULL OR kind = 'changed'")
    _allow("reset", "verify")
    op.drop_column("mails", "done_dt")


def _allow(*kinds: str) -> None:
    op.drop_constraint(op.f("ck_mails_kind"), "mails", type_="check")
    op.create_check_constraint(op.f("ck_mails_kind"), "mails", sa.column("kind").in_(kinds))
