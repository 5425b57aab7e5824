"""IBANs over HTTP."""

import httpx2
import pytest

URL = "/api/v1/ibans/check"


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        ("DE89370400440532013000", "DE89 3704 0044 0532 0130 00"),
        ("gb82 west 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 32"),
    ],
)
async def test_a_right_iban_is_printed(client: httpx2.AsyncClient, typed: str, printed: str) -> None:
    answer = await client.post(URL, json={"iban": typed})
    assert answer.status_code == 200
    assert answer.json() == {"iban": printed.replace(" ", ""), "printed": printed, "country": printed[:2]}


async def test_wrong_check_digits_are_a_problem(client: httpx2.AsyncClient) -> None:
    answer = await client.post(URL, json={"iban": "DE88370400440532013000"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "The check digits do not fit."


@pytest.mark.parametrize(
    "iban", ["", "DE", "DEXX370400440532013000", "DE89-3704", 7, None, "DE89" + "0" * 100]
)
async def test_what_is_no_iban_does_not_fit_the_schema(client: httpx2.AsyncClient, iban: object) -> None:
    answer = await client.post(URL, json={"iban": iban})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["location"] == ["body", "iban"]
