"""Items: the routes. Each is one transaction, committed before its response is sent."""

import re
import uuid
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response

from app.db import Reading, Writing
from app.idempotency.once import OnceRoute, WritingOnce
from app.items import queries
from app.items.dependencies import NO_SUCH_ITEM, Found
from app.items.models import Item
from app.items.schemas import ItemIn, ItemOut, ItemPage

router = APIRouter(prefix="/items", tags=["items"], route_class=OnceRoute)

NAME_TAKEN = "Another item has this name."
ETAG = re.compile(r'"(\d{1,9})"')


@router.post("", status_code=HTTPStatus.CREATED)
async def create_item(new: ItemIn, session: WritingOnce, request: Request, response: Response) -> ItemOut:
    """Create an item; its name must be free."""
    try:
        item = await queries.add(session, name=new.name, price_cents=new.price_cents)
    except queries.NameTaken as error:
        raise HTTPException(HTTPStatus.CONFLICT, NAME_TAKEN) from error
    response.headers["Location"] = request.url_for("read_item", item_id=str(item.id)).path
    return tagged(item, response)


@router.get("")
async def list_items(
    session: Reading,
    after: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ItemPage:
    """List items in the order of their creation."""
    found = await queries.page(session, after=after, limit=limit + 1)
    items = [ItemOut.model_validate(item) for item in found[:limit]]
    return ItemPage(items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/{item_id}")  # noqa: FAST003 - Found takes it
async def read_item(item: Found, response: Response) -> ItemOut:
    """Read an item; its ETag is what an update has to name."""
    return tagged(item, response)


@router.put("/{item_id}")
async def replace_item(
    item_id: uuid.UUID,
    new: ItemIn,
    session: Writing,
    response: Response,
    if_match: Annotated[str | None, Header(description="The ETag of the item as you read it.")] = None,
) -> ItemOut:
    """Replace an item unless somebody else changed it since it was read."""
    if if_match is None:
        raise HTTPException(HTTPStatus.PRECONDITION_REQUIRED, "Send the ETag of the item in If-Match.")
    try:
        item = await queries.replace(
            session, item_id, version=wanted_version(if_match), name=new.name, price_cents=new.price_cents
        )
    except queries.NameTaken as error:
        raise HTTPException(HTTPStatus.CONFLICT, NAME_TAKEN) from error
    if item is None:
        if await queries.get(session, item_id) is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, NO_SUCH_ITEM)
        raise HTTPException(HTTPStatus.PRECONDITION_FAILED, "The item was changed since you read it.")
    return tagged(item, response)


@router.delete("/{item_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_item(item_id: uuid.UUID, session: Writing) -> None:
    """Delete an item."""
    if not await queries.remove(session, item_id):
        raise HTTPException(HTTPStatus.NOT_FOUND, NO_SUCH_ITEM)


def tagged(item: Item | ItemOut, response: Response) -> ItemOut:
    """Return the item as clients see it, and its version as the response's ETag."""
    response.headers["ETag"] = f'"{item.version}"'
    return ItemOut.model_validate(item)


def wanted_version(if_match: str) -> int | None:
    """Return the version that If-Match names, None for any (`*`), and 0, which no item has, for anything else."""
    if if_match.strip() == "*":
        return None
    match = ETAG.fullmatch(if_match.strip())
    return int(match[1]) if match else 0
