"""Settings: what is accepted, what is refused and how, and what is documented."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.main import Settings
from app.settings import SettingsError, load, load_or_exit, settings_groups
from scripts import document_settings

ROOT = Path(__file__).parents[1]


def mistakes() -> dict[str, str]:
    """Load the settings and return what is wrong with them."""
    with pytest.raises(SettingsError) as caught:
        load(Settings)
    return caught.value.mistakes


def test_development_needs_nothing_but_its_name(settings: Settings) -> None:
    assert settings.app.allowed_hosts == ("localhost", "127.0.0.1")
    assert settings.app.docs_served
    assert not settings.app.log_json


def test_production_is_the_default_and_takes_no_development_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APP_ENVIRONMENT")
    assert mistakes() == {"APP_ALLOWED_HOSTS": "is not set, and its default is for development only"}


def test_production_takes_no_placeholder(production: None, monkeypatch: pytest.MonkeyPatch) -> None:
    example = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for variable in example:
        monkeypatch.setenv(variable, "change-me" if variable != "APP_ALLOWED_HOSTS" else "api.example.com")
    assert mistakes().keys() == example.keys()


def test_every_mistake_is_named_and_no_value_is_told(
    production: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_LOG_LEVEL", "hunter2")
    monkeypatch.setenv("APP_BODY_LIMIT_BYTES", "hunter2")
    monkeypatch.setenv("APP_READY_TIMEOUT_S", "-1")
    monkeypatch.setenv("WEB_CONCURRENCY", "0")
    monkeypatch.setenv("SERVER_BIND", "0.0.0.0:8000")
    found = mistakes()
    assert found.keys() == {
        "APP_LOG_LEVEL",
        "APP_BODY_LIMIT_BYTES",
        "APP_READY_TIMEOUT_S",
        "WEB_CONCURRENCY",
        "SERVER_BIND",
    }
    assert found["SERVER_BIND"].startswith("must be unix:/path/to/socket in production")
    assert "hunter2" not in str(found)


def test_a_wrong_setting_stops_the_start_with_one_line_for_each(tmp_path: Path) -> None:
    environment = {"APP_ENVIRONMENT": "production", "APP_LOG_LEVEL": "hunter2", "PYTHONPATH": str(ROOT)}
    for command in (
        ["gunicorn", "-c", str(ROOT / "gunicorn_conf.py")],
        ["uvicorn", "--factory", "app.main:create_app"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode != 0
        assert "hunter2" not in ended.stdout + ended.stderr
        lines = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
        refused = {line["variable"] for line in lines if line["event"] == "setting_refused"}
        assert refused >= {"APP_LOG_LEVEL", "APP_ALLOWED_HOSTS"}
        assert len(refused) == len([line for line in lines if line["event"] == "setting_refused"])
        last = lines[-1]
        if command[0] == "gunicorn":
            assert last["event"] == "start_failed"
            assert all(variable in last["problem"] for variable in refused)
            last = lines[-2]
        assert last["event"] == "setting_refused"


def test_in_development_a_mistake_is_readable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APP_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        load_or_exit(Settings)
    assert ended.value.code == 1
    assert "APP_LOG_LEVEL" in capsys.readouterr().out


def test_an_empty_variable_is_as_good_as_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APP_RATE_LIMIT")
    unset = load(Settings)
    for _, group in settings_groups(Settings):
        for name, field in group.model_fields.items():
            if not field.is_required() and name not in {"environment", "url"}:
                monkeypatch.setenv(group.variable(name), "")
    assert load(Settings) == unset


def test_every_variable_is_described() -> None:
    for _, fields in document_settings.variables():
        for variable, field in fields:
            assert field.description, f"{variable} has no description"


def test_the_example_and_the_readme_are_in_step_with_the_settings() -> None:
    example = (ROOT / ".env.example").read_text()
    assert document_settings.env_example(example) == example, "run `make settings`"
    readme = (ROOT / "README.md").read_text()
    assert document_settings.TABLE.findall(readme) == [document_settings.table()], "run `make settings`"


def test_make_settings_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_settings, "ENV_EXAMPLE", tmp_path / ".env.example")
    monkeypatch.setattr(document_settings, "README", tmp_path / "README.md")
    (tmp_path / ".env.example").write_text("APP_ALLOWED_HOSTS=api.test\n")
    (tmp_path / "README.md").write_text(
        "before\n<!-- settings: begin -->\nold\n<!-- settings: end -->\nafter\n"
    )
    document_settings.main()
    assert "\nAPP_ALLOWED_HOSTS=api.test\n" in (tmp_path / ".env.example").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "| `APP_ALLOWED_HOSTS` | must be set |" in readme


@pytest.mark.parametrize("bind", ["unix:/run/app.sock", "127.0.0.1:8000", "[::1]:8000"])
def test_development_listens_anywhere(settings: Settings, monkeypatch: pytest.MonkeyPatch, bind: str) -> None:
    monkeypatch.setenv("SERVER_BIND", bind)
    assert load(Settings).server.bind == bind


@pytest.mark.parametrize("path", ["/myapi", "/my/api-2", "/~me/v1.0"])
def test_a_root_path_is_accepted(settings: Settings, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("APP_ROOT_PATH", path)
    assert load(Settings).app.root_path == path


@pytest.mark.parametrize(
    "path", ["/", "myapi", "/myapi/", "//evil.test", "/../x", "/a/./b", "/a b", "/a%20b", "/a?b", "/ä"]
)
def test_what_is_no_clean_root_path_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("APP_ROOT_PATH", path)
    assert mistakes()["APP_ROOT_PATH"].startswith("must be like /myapi")


def test_a_folder_for_static_files_is_absolute(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_STATIC_DIR", "static")
    assert mistakes() == {"APP_STATIC_DIR": "must be an absolute path"}
    monkeypatch.setenv("APP_STATIC_DIR", "/var/lib/service/static")
    assert load(Settings).app.static_dir == Path("/var/lib/service/static")


@pytest.mark.parametrize("bind", ["unix:", "8000", "host:port", "host:8000:1"])
def test_what_is_no_address_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, bind: str
) -> None:
    monkeypatch.setenv("SERVER_BIND", bind)
    assert mistakes() == {"SERVER_BIND": "must be unix:/path/to/socket, or host:port in development"}
