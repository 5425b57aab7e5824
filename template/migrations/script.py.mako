"""${message}${f"\n\nRevises: {down_revision}\n" if down_revision else ""}"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


def upgrade() -> None:
    """Expand the schema: the release before this one still runs on it."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo it, on a developer's machine; a rollback in production leaves the schema as it is."""
    ${downgrades if downgrades else "pass"}
