"""Idempotency keys as the database keeps them."""

from sqlalchemy import JSON, BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class IdempotencyKey(Base):
    """One key of one client, and what was answered; the answer is missing only while the work goes on."""

    __tablename__ = "idempotency_keys"

    # Hashes: of who asks and the key, and of what was asked.
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request: Mapped[str] = mapped_column(String(64))
    # In seconds since 1970.
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
    status: Mapped[int | None]
    headers: Mapped[list[list[str]] | None] = mapped_column(JSON)
    body: Mapped[bytes | None]
