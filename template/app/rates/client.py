"""Rates: the other service, in its own words. Nothing here knows of who asks this one."""

import datetime
from decimal import Decimal
from http import HTTPStatus

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import SettingsConfigDict

from app.clients import Service, ServiceUnavailable, ServiceUrl
from app.rates.schemas import Rate
from app.settings import EnvSettings


class RatesSettings(EnvSettings):
    """Rates."""

    model_config = SettingsConfigDict(env_prefix="RATES_")

    url: ServiceUrl | None = Field(
        None,
        description="Where exchange rates come from, as `https://api.frankfurter.dev/v1`."
        " Unset: this service has no `/api/v1/rates`.",
    )


class Latest(BaseModel):
    """What the other service answers."""

    date: datetime.date
    rates: dict[str, Decimal]


async def latest(service: Service, currency: str) -> Rate | None:
    """Return what one euro costs in `currency`, None where the other service knows no such currency.

    Raises:
        ServiceUnavailable: it does not answer, or not as it should.
    """
    answer = await service.request("GET", "/latest", params={"base": "EUR", "symbols": currency})
    if answer.status_code == HTTPStatus.NOT_FOUND:
        return None
    try:
        found = Latest.model_validate_json(answer.content)
        return Rate(currency=currency, date=found.date, rate=found.rates[currency])
    except (KeyError, ValidationError) as error:
        raise ServiceUnavailable(service.name) from error
