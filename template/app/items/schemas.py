"""Items as clients see them."""

import uuid
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# No control characters: the database cannot store NUL, and the others only confuse.
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$"),
]


class ItemIn(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    price_cents: int = Field(ge=0, le=2_000_000_000)


class ItemOut(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    price_cents: int
    version: int


class ItemPage(BaseModel):
    """One page of items in the order of their creation."""

    items: list[ItemOut]
    next: uuid.UUID | None = Field(description="Send it as `after` to get the next page; null on the last.")
