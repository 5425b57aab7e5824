"""What the doctor finds: one line for each thing that it looks at."""

from typing import NamedTuple


class Finding(NamedTuple):
    """How it is (`ok`, `warn` or `fail`), what was looked at, what was found, and the mend."""

    level: str
    what: str
    found: str
    mend: str = ""
