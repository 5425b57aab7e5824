"""IBANs: the routes."""

from http import HTTPStatus

from fastapi import APIRouter, HTTPException

from app.ibans import checks
from app.ibans.schemas import IbanIn, IbanOut

router = APIRouter(prefix="/ibans", tags=["ibans"])


@router.post("/check")
async def check_iban(asked: IbanIn) -> IbanOut:
    """Check an IBAN as a person typed it; a wrong one is a problem of status 422."""
    iban = checks.compact(asked.iban)
    if not checks.has_right_check_digits(iban):
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "The check digits do not fit.")
    return IbanOut(iban=iban, printed=checks.printed(iban), country=iban[:2])
