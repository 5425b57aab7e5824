"""Items: what is asked of the database. The caller owns the transaction."""

import uuid
from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.items.models import Item


class NameTaken(Exception):  # noqa: N818 - the name says what is the case
    """Another item has this name."""


async def add(session: AsyncSession, *, name: str, price_cents: int) -> Item:
    """Insert an item.

    Raises:
        NameTaken: the transaction can only be rolled back.
    """
    item = Item(name=name, price_cents=price_cents)
    session.add(item)
    try:
        await session.flush()
    except IntegrityError as error:
        raise NameTaken from error
    return item


async def get(session: AsyncSession, item_id: uuid.UUID) -> Item | None:
    """Return an item, or None."""
    return await session.get(Item, item_id)


async def page(session: AsyncSession, *, after: uuid.UUID | None, limit: int) -> Sequence[Item]:
    """Return up to `limit` items that follow the id `after`.

    A page begins at an id and not at an offset, so rows that come or go between two pages neither repeat nor hide any.
    """
    query = select(Item).order_by(Item.id).limit(limit)
    if after is not None:
        query = query.where(Item.id > after)
    return (await session.scalars(query)).all()


async def replace(
    session: AsyncSession, item_id: uuid.UUID, *, version: int | None, name: str, price_cents: int
) -> Item | None:
    """Replace an item that still has `version` (None: whatever it has); return None where there is no such row.

    Raises:
        NameTaken: the transaction can only be rolled back.
    """
    query = update(Item).where(Item.id == item_id)
    if version is not None:
        query = query.where(Item.version == version)
    changed = query.values(name=name, price_cents=price_cents, version=Item.version + 1).returning(Item)
    try:
        return (await session.scalars(changed)).one_or_none()
    except IntegrityError as error:
        raise NameTaken from error


async def remove(session: AsyncSession, item_id: uuid.UUID) -> bool:
    """Delete an item; return whether it was there."""
    deleted = await session.scalars(delete(Item).where(Item.id == item_id).returning(Item.id))
    return deleted.one_or_none() is not None
