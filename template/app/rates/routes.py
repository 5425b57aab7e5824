"""Rates: the routes."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path

from app.clients import Service, service
from app.rates import client
from app.rates.schemas import Rate

router = APIRouter(prefix="/rates", tags=["rates"])

Currency = Annotated[str, Path(pattern=r"^[A-Z]{3}$", description="Three capitals (ISO 4217).")]


@router.get("/{currency}")
async def read_rate(currency: Currency, rates: Annotated[Service, service("rates")]) -> Rate:
    """Read what one euro costs."""
    rate = await client.latest(rates, currency)
    if rate is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no rate for this currency.")
    return rate
