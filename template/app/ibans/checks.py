"""IBANs: what makes one valid. Nothing here knows of HTTP."""


def compact(iban: str) -> str:
    """Return an IBAN without blanks, in capitals."""
    return iban.replace(" ", "").upper()


def has_right_check_digits(iban: str) -> bool:
    """Return whether a compact IBAN's check digits fit the rest (ISO 7064, modulo 97)."""
    rotated = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in rotated)) % 97 == 1


def printed(iban: str) -> str:
    """Return a compact IBAN in groups of four."""
    return " ".join(iban[start : start + 4] for start in range(0, len(iban), 4))
