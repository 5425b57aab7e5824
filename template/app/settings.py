"""Settings: environment variables, typed and checked before anything starts."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

import structlog
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import logs

T = TypeVar("T")

METRICS_SOCKET = "metrics.sock"
BIND = re.compile(r"unix:.+|[^:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
# No segment begins with a dot, so none of them leads elsewhere.
ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
PLACEHOLDER = re.compile(r"(change|generate)-?me|\bexample\.(com|net|org)\b", re.IGNORECASE)
DEVELOPMENT_ONLY: dict[str, Any] = {"development_only": True}


class Environment(StrEnum):
    """Where the service runs."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


def split_commas(value: object) -> object:
    """Turn `a, b` into a tuple; anything else stays for pydantic to judge."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class SettingsError(Exception):
    """One or more variables are missing or wrong; `mistakes` maps each to what is wrong with it."""

    def __init__(self, mistakes: dict[str, str]) -> None:
        """Keep the mistakes; none of them holds a variable's value."""
        super().__init__("\n".join(f"{variable}: {wrong}" for variable, wrong in mistakes.items()))
        self.mistakes = mistakes


class EnvSettings(BaseSettings):
    """A group of variables: what every group has in common. A group's docstring is its title in the README."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    environment: Environment = Field(
        Environment.PRODUCTION,
        validation_alias="APP_ENVIRONMENT",
        description="`production` or `development`. Anything convenient but unsafe is off in production.",
    )

    @classmethod
    def variable(cls, name: str) -> str:
        """Return the environment variable of the field `name`."""
        alias = cls.model_fields[name].validation_alias
        return alias if isinstance(alias, str) else f"{cls.model_config['env_prefix']}{name}".upper()

    @classmethod
    def load(cls) -> Self:
        """Read the group from the environment.

        Raises:
            SettingsError: naming every variable that is missing or wrong.
        """
        try:
            return cls()
        except ValidationError as error:
            names = {cls.variable(name).lower(): cls.variable(name) for name in cls.model_fields}
            mistakes = {}
            for mistake in error.errors(include_url=False, include_context=False, include_input=False):
                name = str(mistake["loc"][0])
                variable = names.get(name.lower()) or cls.variable(name)
                missing = mistake["type"] == "missing"
                mistakes[variable] = "is not set" if missing else mistake["msg"].removeprefix("Value error, ")
            raise SettingsError(mistakes) from None

    @field_validator("*")
    @classmethod
    def refuse_placeholders(cls, value: object, info: ValidationInfo) -> object:
        """Accept no default meant for development, and no value of an example, in production."""
        if info.data.get("environment") is not Environment.PRODUCTION or info.field_name is None:
            return value
        field = cls.model_fields[info.field_name]
        if field.json_schema_extra == DEVELOPMENT_ONLY and value == field.default:
            raise ValueError("is not set, and its default is for development only")
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        for part in text if isinstance(text, tuple) else (text,):
            if isinstance(part, str) and PLACEHOLDER.search(part):
                raise ValueError("still holds a placeholder; put the real value there")
        return value


class AppSettings(EnvSettings):
    """Application."""

    model_config = SettingsConfigDict(env_prefix="APP_")

    log_level: LogLevel = Field("INFO", description="The least severe level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="`json`: one object per line; `console`: coloured text;"
        " `auto`: console in development, else json.",
    )
    allowed_hosts: Strings = Field(
        ("localhost", "127.0.0.1"),
        json_schema_extra=DEVELOPMENT_ONLY,
        description="Host names to answer to, with commas between; `*.domain` matches every subdomain.",
    )
    cors_origins: Strings = Field(
        (), description="Origins whose pages may call this API from a browser, with commas between."
    )
    docs: bool | None = Field(
        None, description="Serve `/docs` and `/openapi.json`. Unset: only in development."
    )
    root_path: str = Field(
        "",
        description="Path below which everything is served, as /myapi, whether the proxy passes it on or strips it.",
    )
    static_dir: Path | None = Field(
        None,
        description="Folder that static files are copied to, by their hashes, for the proxy to serve. Unset: only the"
        " service serves them.",
    )
    body_limit_bytes: int = Field(
        10_000_000, gt=0, description="Largest request body in bytes; a larger one is refused with 413."
    )
    body_timeout_s: Seconds = Field(
        60.0, description="Seconds that a request body may take to come; a slower one is refused with 408."
    )
    request_budget_s: Seconds = Field(
        20.0,
        description="Seconds that an answer may take to begin, counted from when the request is complete; a slower one is"
        " cancelled and answered with 504. Less than `SERVER_DRAIN_S`.",
    )
    max_in_flight: int = Field(
        100,
        ge=1,
        description="Requests that a worker answers at a time; more are refused with 503, and more than half of them to one"
        " address with 429. A stream that has begun does not count.",
    )
    ready_timeout_s: Seconds = Field(
        2.0, description="Seconds that `/ready` waits for each dependency before it counts as failed."
    )
    release: str = Field("", description="Release that runs, as metrics name it; a deployment sets it.")
    slot: str = Field("", description="Slot that it runs in, as metrics name it; a deployment sets it.")

    @field_validator("root_path")
    @classmethod
    def check_root_path(cls, value: str) -> str:
        """Refuse what a proxy and a browser could read in more than one way."""
        if not ROOT_PATH.fullmatch(value):
            raise ValueError("must be like /myapi: a slash in front, none behind, and no unusual letters")
        return value

    @field_validator("static_dir")
    @classmethod
    def check_static_dir(cls, value: Path | None) -> Path | None:
        """Refuse a folder that depends on where the process was started."""
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @property
    def log_json(self) -> bool:
        """Whether log lines are JSON objects."""
        if self.log_format == "auto":
            return self.environment is Environment.PRODUCTION
        return self.log_format == "json"

    @property
    def docs_served(self) -> bool:
        """Whether the interactive documentation is served."""
        if self.docs is None:
            return self.environment is Environment.DEVELOPMENT
        return self.docs


class ServerSettings(EnvSettings):
    """Server."""

    model_config = SettingsConfigDict(env_prefix="SERVER_")

    workers: int | None = Field(
        None,
        ge=1,
        validation_alias="WEB_CONCURRENCY",
        description="Worker processes. Unset: as many as processors and memory allow.",
    )
    bind: str = Field(
        "unix:app.sock",
        description="Where gunicorn listens: `unix:/path/to/socket`; in development also `host:port`.",
    )
    worker_timeout_s: int = Field(
        30, ge=2, description="Seconds after which a worker whose event loop is blocked is replaced."
    )
    drain_s: int = Field(
        25,
        ge=1,
        description="Seconds that a stopping worker gives its open requests."
        " The supervisor must wait at least 10 s longer before it kills.",
    )
    keepalive_s: int = Field(
        75,
        ge=1,
        description="Seconds that an idle connection is kept; longer than the proxy keeps its own.",
    )
    max_requests: int = Field(
        0,
        ge=0,
        description="Requests after which a worker is replaced; 0: never. Replacing can drop requests:"
        " a last resort against a memory leak, and then 50000 or more.",
    )

    @field_validator("bind")
    @classmethod
    def refuse_tcp_in_production(cls, value: str, info: ValidationInfo) -> str:
        """Only who may open the socket file may speak to the app, so proxy headers can be believed."""
        if not BIND.fullmatch(value):
            raise ValueError("must be unix:/path/to/socket, or host:port in development")
        if info.data.get("environment") is Environment.PRODUCTION and not value.startswith("unix:"):
            raise ValueError("must be unix:/path/to/socket in production, where only the proxy may connect")
        if Path(value).name == METRICS_SOCKET:
            raise ValueError(f"must have another name, for metrics are served at {METRICS_SOCKET} beside it")
        return value

    @property
    def metrics_socket(self) -> Path | None:
        """Where metrics are served: beside the socket of the service, None where it has none."""
        name = self.bind.removeprefix("unix:")
        return Path(name).with_name(METRICS_SOCKET) if name != self.bind else None


def check_budget(app: AppSettings, server: ServerSettings) -> None:
    """Check that a worker that stops still finishes every request.

    Raises:
        SettingsError: a request may take as long as a worker has to stop, or longer.
    """
    if app.request_budget_s >= server.drain_s:
        budget, drain = AppSettings.variable("request_budget_s"), ServerSettings.variable("drain_s")
        wrong = (
            f"is {app.request_budget_s:g} s, and must be less than {drain}, which is {server.drain_s} s:"
            f" lower {budget}, or raise {drain}"
        )
        raise SettingsError({budget: wrong})


class ServiceSettings(EnvSettings):
    """This service's own."""

    # Add fields here, then run `make settings`; routes find them as `request.app.state.settings.service`.


def load(groups: type[T]) -> T:
    """Load a dataclass whose fields are settings groups.

    Raises:
        SettingsError: naming every variable of every group that is missing or wrong.
    """
    loaded: dict[str, EnvSettings] = {}
    mistakes: dict[str, str] = {}
    for name, group in settings_groups(groups):
        try:
            loaded[name] = group.load()
        except SettingsError as error:
            mistakes |= error.mistakes
    if mistakes:
        raise SettingsError(mistakes)
    return groups(**loaded)


def load_or_exit(groups: type[T]) -> T:
    """Load like `load`; on mistakes log one line for each and end the process with status 1."""
    try:
        return load(groups)
    except SettingsError as error:
        logs.begin()
        for variable, wrong in error.mistakes.items():
            structlog.get_logger("app.settings").critical("setting_refused", variable=variable, problem=wrong)
        sys.exit(1)


def settings_groups(groups: type) -> Iterator[tuple[str, type[EnvSettings]]]:
    """Yield name and class of each group in a dataclass of groups."""
    hints = get_type_hints(groups)
    for field in dataclasses.fields(groups):
        yield field.name, hints[field.name]
