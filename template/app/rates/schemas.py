"""Rates as clients see them."""

import datetime
from decimal import Decimal

from pydantic import BaseModel


class Rate(BaseModel):
    """What one euro costs."""

    currency: str
    date: datetime.date
    rate: Decimal
