"""IBANs as clients see them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

# A country, two check digits and up to 30 letters or digits (ISO 13616); blanks group them in print.
PrintedIban = Annotated[
    str, StringConstraints(min_length=5, max_length=42, pattern=r"^[A-Za-z]{2}[0-9]{2}[A-Za-z0-9 ]+$")
]


class IbanIn(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    iban: PrintedIban


class IbanOut(BaseModel):
    """What a client gets."""

    iban: str
    printed: str
    country: str
