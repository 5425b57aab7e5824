"""What marks a rehearsal."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "live: boots machines; needs root")
