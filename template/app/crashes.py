"""Crashes told to Sentry: on where `SENTRY_DSN` names a project there; else nothing of it is imported."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from app.settings import AppSettings, EnvSettings
from app.tracing import need_group

Report = Callable[[Exception], object]


class SentrySettings(EnvSettings):
    """Sentry."""

    model_config = SettingsConfigDict(env_prefix="SENTRY_")

    dsn: SecretStr | None = Field(
        None, description="Where crashes are reported: the DSN of a project in Sentry. Unset: nowhere."
    )
    traces_sample_rate: float = Field(
        0.0, ge=0, le=1, description="Share of the requests whose traces Sentry gets; 0: none."
    )

    @field_validator("dsn")
    @classmethod
    def check_dsn(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse what is no DSN, and any as long as nothing is installed that could send to it."""
        if value is None:
            return None
        need_group("sentry", "sentry_sdk")
        from sentry_sdk.utils import BadDsn, Dsn

        try:
            Dsn(value.get_secret_value())
        except BadDsn:
            raise ValueError("is no DSN; it looks like https://key@host/number") from None
        return value


def reporter(settings: SentrySettings, app: AppSettings) -> Report | None:
    """Return what tells Sentry of a crash, None where it is off."""
    if settings.dsn is None:
        return None
    from app import sentry

    return sentry.begin(
        settings.dsn.get_secret_value(),
        traces_sample_rate=settings.traces_sample_rate,
        environment=app.environment.value,
        release=app.release or None,
    )


@asynccontextmanager
async def flushed(settings: SentrySettings) -> AsyncGenerator[None]:
    """Send at the end what has not been sent, in a bounded time."""
    try:
        yield
    finally:
        if settings.dsn is not None:
            from app import sentry

            await asyncio.to_thread(sentry.flush)
