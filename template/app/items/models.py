"""Items as the database keeps them."""

import uuid

from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, uuid7


class Item(Base):
    """Something with a name and a price."""

    __tablename__ = "items"
    __table_args__ = (CheckConstraint("price_cents >= 0", name="price_not_negative"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    price_cents: Mapped[int]
    version: Mapped[int] = mapped_column(default=1)
