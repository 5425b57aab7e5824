"""What is in ops/ fits the service, and a real Prometheus that scrapes a real server answers it."""

import ast
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import combinations as pairs_of
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.combinations import Answers, combinations, render, row_id

SLUG = "my-api"
# Prometheus's own; all others are the service's.
PROMETHEUS_OWN = {"up"}
FUNCTIONS = {
    *("absent", "and", "changes", "histogram_quantile", "increase", "max", "max_over_time"),
    *("offset", "or", "rate", "sum", "unless"),
}
GROUPINGS = r"\b(?:by|ignoring|on|group_left)\s*\([^)]*\)|\bgroup_left\b"
UNITS = {"bytes", "none", "percentunit", "reqps", "s"}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What Grafana puts in their places.
VARIABLES = {"$job": SLUG, "$__rate_interval": "1m"}

CLIENT = "203.0.113.7"
GREEDY = "203.0.113.9"
REQUEST_ID = "0123456789abcdef"
# A service with routes that feed what only happens in trouble.
FED_APP = """
import asyncio
import time

from app import metrics
from app.main import create_app


def create():
    app = create_app()

    @app.get("/feed")
    async def feed() -> None:
        for reason in ("overload", "budget", "rate_limit", "body", "host"):
            metrics.REFUSED.labels(reason).inc()
        for outcome in ("ok", "error", "timeout", "refused"):
            metrics.CLIENT_SECONDS.labels("payments", outcome).observe(0.1)
        metrics.BREAKER.labels("payments").set(2)
        for result in ("hit", "miss", "stale", "error"):
            metrics.CACHE.labels("prices", result).inc()

    @app.get("/sleep")
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("planted")

    @app.get("/block")
    async def block() -> None:
        time.sleep(60)

    return app
"""
# What each query of logs.md has to find of it.
FOUND = {
    "The slowest routes": r"^GET\t/sleep\t\d+\t3\d\d",
    "One request": f'"request_id": "{REQUEST_ID}"',
    "Errors by route": r"^\d+\t500\t/crash$",
    "The requests of one client": r"\tGET\t/sleep\t200\t3\d\d",
    "Crashes": r"\tcrash\t/crash\t\w+\tRuntimeError\tplanted$",
    "Crashes, 1": r" /.*/fed_app\.py\t\d+\tcrash$",
    "Crashes, 2": r"Z\t  File .*/fed_app\.py\\?\", line \d+ in block$",
    "Refused settings": r"\tAPP_ALLOWED_HOSTS\t",
    "Who was limited": rf"^\d+\t{GREEDY}\tgreedy$",
    "What is not usual": r"^\d+\terror\tcrash$",
}


def needs(*programs: str) -> None:
    """Skip, and say for want of what; where everything must run, fail."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing} not installed")


@pytest.fixture(scope="module")
def project_of(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Answers], Path]:
    """Gives a project with these answers, rendered once; nobody changes it."""

    @cache
    def rendered(row: tuple[tuple[str, str], ...]) -> Path:
        return render(template, tmp_path_factory.mktemp("project"), **dict(row))

    return lambda answers: rendered(tuple(answers.items()))


# ----------------------------------------------------------- what is looked for


def rules_of(project: Path) -> list[dict[str, Any]]:
    """The alert rules."""
    (group,) = yaml.safe_load((project / "ops/prometheus/alerts.yml").read_text())["groups"]
    assert group["name"] == SLUG
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard_of(project: Path) -> dict[str, Any]:
    """The dashboard."""
    loaded: dict[str, Any] = json.loads((project / "ops/grafana/dashboard.json").read_text())
    return loaded


def expressions(project: Path) -> dict[str, str]:
    """Everything that Prometheus is asked, by where that stands."""
    found = {rule["alert"]: rule["expr"] for rule in rules_of(project)}
    dashboard = dashboard_of(project)
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']}: {target['legendFormat']}"] = target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"]
    return found


def selectors(expression: str) -> list[tuple[str, str]]:
    """The metrics that are asked for, each with its matchers."""
    return re.findall(r"([a-z_]+)\{([^}]*)\}", expression)


def metrics_of(project: Path) -> dict[str, set[str]]:
    """The names of all series of a service, each with its labels."""
    found: dict[str, set[str]] = {}
    for call in ast.walk(ast.parse((project / "app/metrics.py").read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {
            "Counter",
            "Gauge",
            "Histogram",
        }:
            name = ast.literal_eval(call.args[0])
            labels = set(ast.literal_eval(call.args[2])) if len(call.args) > 2 else set()
            if ast.unparse(call.func) == "Histogram":
                found |= {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels}
            else:
                found[name] = labels
    # The scrape's own, and the slot that every series names.
    return {name: labels | {"instance", "job", "slot"} for name, labels in found.items()}


def unknown_metrics(project: Path) -> Iterator[str]:
    """Whatever the service does not measure, or measures without this label."""
    known = metrics_of(project) | {name: {"instance", "job"} for name in PROMETHEUS_OWN}
    for place, expression in expressions(project).items():
        asked = selectors(expression)
        grouped = re.findall(
            r"[a-z_]+", " ".join(re.findall(r"\b(?:by|on|ignoring) ?\((.*?)\)", expression))
        )
        for name, matchers in asked:
            if name not in known:
                yield f"{place}: there is no metric {name}"
                continue
            labels = set(re.findall(r"(\w+)[=!]", matchers))
            yield from (f"{place}: {name} has no {label}" for label in labels - known[name])
            if "job" not in labels:
                yield f"{place}: {name} of every service"
        every = set[str]().union(*(known.get(name, set()) for name, _ in asked))
        yield from (f"{place}: nothing has a {label}" for label in set(grouped) - every)
        rest = re.sub(r"[a-z_]+\{[^}]*\}|\[[^]]*\]|\d\w*", "", re.sub(GROUPINGS, "", expression))
        for name in set(re.findall(r"[a-z_]+", rest)) - FUNCTIONS:
            yield f"{place}: {name} is no function, or has no braces"


def loose_alerts(project: Path) -> Iterator[str]:
    """Alerts that lack what makes them of use, a section or a test; sections and tests of none."""
    rules = rules_of(project)
    names = [rule["alert"] for rule in rules]
    for rule in rules:
        name = rule["alert"]
        if rule["labels"].get("severity") not in {"critical", "warning"}:
            yield f"{name}: neither critical nor warning"
        annotations = rule["annotations"]
        if set(annotations) != {"summary", "description", "runbook"}:
            yield f"{name}: annotations are {set(annotations)}"
        elif "{{ $value" not in annotations["description"]:
            yield f"{name}: the description lacks the value"
        elif annotations["runbook"] != f"ops/runbook.md#{name.lower()}":
            yield f"{name}: its section is not {annotations['runbook']}"
    sections = re.findall(r"^## (.*)$", (project / "ops/runbook.md").read_text(), re.MULTILINE)
    if sections != names:
        yield f"runbook.md: sections are {sections}, alerts {names}"

    suite = yaml.safe_load((project / "ops/prometheus/alerts_test.yml").read_text())
    good, *bad = suite["tests"]
    (nothing,) = good["promql_expr_test"]
    if "ALERTS" not in nothing["expr"] or nothing["exp_samples"]:
        yield "alerts_test.yml: the good day does not ask for alerts"
    asked = {name for rule in rules for name, _ in selectors(rule["expr"])}
    present = {series["series"].partition("{")[0] for series in good["input_series"]}
    yield from (f"alerts_test.yml: the good day lacks {name}" for name in asked - present)
    firing = {
        case["alertname"]
        for test in bad
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    yield from (f"alerts_test.yml: {name} never fires" for name in set(names) - firing)
    yield from (f"alerts_test.yml: {name} is no alert" for name in firing - set(names))


def misleading(project: Path) -> Iterator[str]:
    """What the runbook and the queries name and nothing has: verbs, variables, panels, sections."""
    deploy = (project / "deploy/deploy.sh").read_text()
    (usage,) = re.findall(r"^usage\(\) \{$(.*?)^\}$", deploy, re.MULTILINE | re.DOTALL)
    verbs = set(re.findall(r"^  ([a-z]+) ", usage, re.MULTILINE))
    variables = set(
        re.findall(r"^#? ?([A-Z_]+)=", (project / ".env.example").read_text(), re.MULTILINE)
    )
    titles = {panel["title"] for panel in dashboard_of(project)["panels"]}
    titles |= set(re.findall(r"^## (.*)$", (project / "ops/logs.md").read_text(), re.MULTILINE))
    for name in ("runbook.md", "logs.md"):
        text = (project / "ops" / name).read_text()
        for verb in set(re.findall(r"deploy/deploy\.sh ([a-z]+)", text)) - verbs:
            yield f"{name}: deploy.sh has no verb {verb}"
        for variable in (
            set(re.findall(r"\b(?:APP|DATABASE|REDIS|SERVER|WEB)_[A-Z_]+", text)) - variables
        ):
            yield f"{name}: there is no variable {variable}"
        for path in re.findall(r"`((?:ops|deploy)/[\w./@-]+)[` ]", text):
            if not (project / path).exists():
                yield f"{name}: there is no {path}"
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        for title in set(re.findall(r'"([^"]+)"', prose)) - titles:
            yield f"{name}: nothing is called {title}"


def bad_panels(dashboard: dict[str, Any]) -> Iterator[str]:
    """What Grafana would refuse, move or show empty."""
    if not re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"]) or not dashboard["title"]:
        yield "the dashboard has no name"
    if dashboard.get("id") is not None or "__inputs" in dashboard:
        yield "it belongs to the Grafana that it was exported from"
    # What Grafana 10 writes; older ones cannot read newer.
    if dashboard["schemaVersion"] != 39:
        yield f"schemaVersion is {dashboard['schemaVersion']}"
    kinds = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    if kinds != {"datasource": "datasource", "job": "query"}:
        yield f"variables are {kinds}"

    panels = dashboard["panels"]
    for what in ("id", "title"):
        yield from (
            f"{count} panels have the {what} {value}"
            for value, count in Counter(panel[what] for panel in panels).items()
            if count > 1
        )
    cells = [Counter(cells_of(panel["gridPos"])) for panel in panels]
    for (one, first), (other, second) in pairs_of(zip(panels, cells, strict=True), 2):
        if first & second:
            yield f"{one['title']} lies upon {other['title']}"
    filled = set().union(*cells)
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] < 0 or place["w"] < 1 or place["x"] + place["w"] > 24:
            yield f"{panel['title']}: is wider than the dashboard"
        above = {(x, place["y"] - 1) for x in range(place["x"], place["x"] + place["w"])}
        if place["y"] and not above & filled:
            yield f"{panel['title']}: has nothing above it"
        yield from bad_queries(panel)
    for annotation in dashboard["annotations"]["list"]:
        if annotation["datasource"] != DATASOURCE or not annotation["enable"]:
            yield f"{annotation['name']}: has no datasource, or is off"


def cells_of(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    """The cells of the grid that a panel fills."""
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def bad_queries(panel: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one panel."""
    title = panel["title"]
    if panel["type"] == "row":
        if panel["collapsed"] or panel["panels"] or "targets" in panel:
            yield f"{title}: a row that hides something"
        return
    if panel["type"] not in {"timeseries", "stat"}:
        yield f"{title}: is a {panel['type']}"
    if not panel["description"]:
        yield f"{title}: lacks a description"
    if panel["fieldConfig"]["defaults"]["unit"] not in UNITS:
        yield f"{title}: has no unit"
    references = [target["refId"] for target in panel["targets"]]
    if not references or len(set(references)) < len(references):
        yield f"{title}: targets are {references}"
    for target in panel["targets"]:
        if not target.get("expr") or not target.get("legendFormat"):
            yield f"{title}: a target without query or legend"
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", target["expr"]))))
        if "by (" in target["expr"] and labels != kept - {"le"}:
            yield f"{title}: the legend shows {labels}, the query keeps {kept}"
    for place in (panel, *panel["targets"]):
        if place.get("datasource") != DATASOURCE:
            yield f"{title}: does not use the variable datasource"


def misdirected(project: Path) -> Iterator[str]:
    """Where Prometheus is told to ask, and nothing listens."""
    (job,) = yaml.safe_load((project / "ops/prometheus/scrape.yml").read_text())["scrape_configs"]
    (listens,) = re.findall(
        r"^ListenStream=(.*)$", (project / "deploy/metrics.socket").read_text(), re.MULTILINE
    )
    (target,) = job["static_configs"][0]["targets"]
    if (target, job["metrics_path"]) != (listens, "/metrics"):
        yield f"scrape.yml: asks {target}{job['metrics_path']}, metrics are on {listens}/metrics"
    if job["job_name"] != SLUG:
        yield f"scrape.yml: the job is {job['job_name']}"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "metrics": unknown_metrics,
    "scrape": misdirected,
    "alerts": loose_alerts,
    "texts": misleading,
    "panels": lambda project: bad_panels(dashboard_of(project)),
}


def promtool(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask promtool about files in ops/prometheus."""
    return subprocess.run(
        ["promtool", *arguments],
        cwd=project / "ops/prometheus",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


PROMTOOL = {
    "rules": ("check", "rules", "alerts.yml"),
    "scrape": ("check", "config", "scrape.yml"),
    "tests": ("test", "rules", "alerts_test.yml"),
}


# -------------------------------------------------------------- on the projects


@pytest.mark.parametrize("row", combinations(["database", "cache", "deployment"]), ids=row_id)
@pytest.mark.parametrize("check", CHECKS)
def test_what_is_in_ops_fits(
    check: str, row: Answers, project_of: Callable[[Answers], Path]
) -> None:
    assert not list(CHECKS[check](project_of(row)))


@pytest.mark.parametrize("row", combinations(["database", "cache"]), ids=row_id)
@pytest.mark.parametrize("asked", PROMTOOL)
def test_promtool_finds_nothing(
    asked: str, row: Answers, project_of: Callable[[Answers], Path]
) -> None:
    needs("promtool")
    done = promtool(project_of(row | {"deployment": "docker"}), *PROMTOOL[asked])
    assert done.returncode == 0, done.stdout


def test_only_database_and_cache_change_what_prometheus_and_grafana_read(
    project_of: Callable[[Answers], Path],
) -> None:
    rows = combinations(["database", "cache", "deployment"])
    texts: dict[tuple[bool, str], set[str]] = {}
    for row in rows:
        project = project_of(row)
        files = sorted(path for path in (project / "ops").glob("*/*"))
        assert len(files) == 4
        key = (row["database"] == "none", row["cache"])
        texts.setdefault(key, set()).add("".join(path.read_text() for path in files))
    assert [len(found) for found in texts.values()] == [1] * 4


# -------------------------------------------------- each check finds its fault

RULES, SUITE, BOARD = (
    "prometheus/alerts.yml",
    "prometheus/alerts_test.yml",
    "grafana/dashboard.json",
)


@pytest.mark.parametrize(
    ("check", "name", "pattern", "replacement", "says"),
    [
        (
            "metrics",
            RULES,
            r"http_requests_in_flight\{",
            "requests_in_flight{",
            "no metric requests_in",
        ),
        ("metrics", RULES, r"reason=~", "why=~", "has no why"),
        (
            "metrics",
            RULES,
            r"by \(job, instance, cache\)",
            "by (job, store)",
            "nothing has a store",
        ),
        (
            "metrics",
            RULES,
            r'(workers)\{job="my-api"\} <',
            r"\1 <",
            "no function, or has no braces",
        ),
        ("metrics", BOARD, r"\{job=\\\"\$job\\\"\}", "{}", "of every service"),
        ("metrics", BOARD, r"state\) \(db_pool_connections", "state) (pool", "no metric pool"),
        ("scrape", "prometheus/scrape.yml", "9464", "9465", "metrics are on 127.0.0.1:9464"),
        ("scrape", "prometheus/scrape.yml", "job_name: .*", "job_name: api", "the job is api"),
        ("alerts", RULES, "severity: critical", "severity: page", "neither critical nor warning"),
        ("alerts", RULES, r"^ +summary: .*\n", "", "annotations are"),
        ("alerts", RULES, r"\{\{ \$value \}\}", "high", "lacks the value"),
        ("alerts", RULES, "runbook.md#servicedown", "runbook.md#down", "its section is not"),
        ("alerts", RULES, "alert: MemoryHigh", "alert: MemoryLow", "sections are"),
        ("alerts", "runbook.md", "## MemoryHigh", "## Memory", "sections are"),
        ("alerts", SUITE, r"alertname: EventLoopLag", "alertname: Lag", "EventLoopLag never fires"),
        ("alerts", SUITE, r"alertname: EventLoopLag", "alertname: Lag", "Lag is no alert"),
        ("alerts", SUITE, r"- series: 'up\{", "- series: 'down{", "good day lacks up"),
        ("alerts", SUITE, "ALERTS", "up", "does not ask for alerts"),
        ("texts", "runbook.md", "deploy.sh rollback", "deploy.sh back", "no verb back"),
        ("texts", "logs.md", "deploy.sh logs", "deploy.sh log", "no verb log"),
        ("texts", "runbook.md", "WEB_CONCURRENCY", "WEB_WORKERS", "no variable WEB_WORKERS"),
        ("texts", "runbook.md", "ops/logs.md", "ops/log.md", "no ops/log.md"),
        ("texts", BOARD, '"p99 by route"', '"p99"', "nothing is called p99 by route"),
        ("texts", "logs.md", "## Crashes", "## Crash", "nothing is called Crashes"),
        ("panels", BOARD, r'"uid": "my-api"', '"uid": ""', "has no name"),
        ("panels", BOARD, r'"schemaVersion": 39', '"schemaVersion": 7', "schemaVersion is 7"),
        ("panels", BOARD, r'"name": "datasource"', '"name": "source"', "variables are"),
        ("panels", BOARD, r'"version": 1', '"id": 5', "belongs to the Grafana"),
        ("panels", BOARD, r'"id": 3,', '"id": 4,', "2 panels have the id 4"),
        ("panels", BOARD, r'"title": "p95 by route"', '"title": "p99 by route"', "have the title"),
        ("panels", BOARD, r'"x": 9, "y": 1', '"x": 8, "y": 1', "lies upon"),
        ("panels", BOARD, r'"x": 18, "y": 1, "w": 6', '"x": 18, "y": 1, "w": 7', "is wider"),
        ("panels", BOARD, r'"y": 45', '"y": 46', "has nothing above it"),
        ("panels", BOARD, r'"collapsed": false', '"collapsed": true', "hides something"),
        ("panels", BOARD, r'"type": "stat"', '"type": "graph"', "is a graph"),
        ("panels", BOARD, r'"unit": "bytes"', '"unit": "B"', "has no unit"),
        ("panels", BOARD, r'"refId": "B"', '"refId": "A"', "targets are"),
        (
            "panels",
            BOARD,
            r'"legendFormat": "limit"',
            '"legendFormat": ""',
            "without query or legend",
        ),
        ("panels", BOARD, r"\{\{reason\}\}", "{{status}}", "the legend shows"),
        (
            "panels",
            BOARD,
            r'"uid": "\$\{datasource\}"',
            '"uid": "mine"',
            "does not use the variable",
        ),
        ("panels", BOARD, r'"enable": true', '"enable": false', "or is off"),
    ],
)
def test_each_check_finds_its_fault(
    check: str,
    name: str,
    pattern: str,
    replacement: str,
    says: str,
    project_of: Callable[[Answers], Path],
    tmp_path: Path,
) -> None:
    whole = project_of({"database": "postgresql", "cache": "redis", "deployment": "docker"})
    project = shutil.copytree(whole, tmp_path / "project")
    path = project / "ops" / name
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count
    path.write_text(text)
    assert says in "\n".join(CHECKS[check](project))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "name", "pattern", "replacement", "says"),
    [
        ("rules", RULES, r"\[5m\]\)\)\) > 0\.1", "))) > 0.1 0.1", "could not parse"),
        ("rules", RULES, "    for: 5m", "    for: soon", "not a valid duration"),
        (
            "scrape",
            "prometheus/scrape.yml",
            "scrape_timeout: 10s",
            "scrape_timeout: 20s",
            "timeout greater",
        ),
        ("tests", RULES, "> 0.01$", "> 0.2", "alertname: RequestsRefused"),
        ("tests", RULES, "> 500e6", "> 90e6", "ALERTS"),
        ("tests", RULES, r'route!~"/health\|/ready", ', "", "ALERTS"),
        ("tests", RULES, "for: 1m", "for: 3m", "alertname: ServiceDown"),
        ("tests", RULES, "humanizePercentage", "humanize", "of the requests of the last hour"),
    ],
)
def test_promtool_finds_a_fault(
    asked: str,
    name: str,
    pattern: str,
    replacement: str,
    says: str,
    project_of: Callable[[Answers], Path],
    tmp_path: Path,
) -> None:
    needs("promtool")
    whole = project_of({"database": "postgresql", "cache": "redis", "deployment": "docker"})
    project = shutil.copytree(whole, tmp_path / "project")
    path = project / "ops" / name
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count
    path.write_text(text)
    done = promtool(project, *PROMTOOL[asked])
    assert done.returncode != 0
    assert says in done.stdout


# ------------------------------------------------------------- the real things


class Forwarder(socketserver.ThreadingTCPServer):
    """Passes on what comes by TCP to a unix socket, as the server's proxy does on port 9464."""

    daemon_threads = True

    def __init__(self, target: Path) -> None:
        """Listen on a free port."""
        self.target = str(target)
        super().__init__(("127.0.0.1", 0), Forward)


class Forward(socketserver.BaseRequestHandler):
    """One request."""

    server: Forwarder

    def handle(self) -> None:
        """Pass on the request's header, and the answer until it ends."""
        asked = b""
        while b"\r\n\r\n" not in asked and (part := self.request.recv(65536)):
            asked += part
        with socket.socket(socket.AF_UNIX) as service:
            service.connect(self.server.target)
            service.sendall(asked)
            while part := service.recv(65536):
                self.request.sendall(part)


class Prometheus:
    """A Prometheus of the test's own."""

    def __init__(self, folder: Path, project: Path, target: str) -> None:
        """Take the project's own files; only place and time are the test's."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        scraping = yaml.safe_load((project / "ops/prometheus/scrape.yml").read_text())
        (job,) = scraping["scrape_configs"]
        job["static_configs"][0]["targets"] = [target]
        job |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        rules = str(project / "ops/prometheus/alerts.yml")
        settings = {"global": {"evaluation_interval": "1s"}, "rule_files": [rules], **scraping}
        self.folder = folder
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        self.client = httpx2.Client(base_url=f"http://{self.address}/api/v1")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it."""
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self.folder}/prometheus.yml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.kill()
            process.wait()
            self.client.close()

    def get(self, path: str, **parameters: str) -> Any:
        """Ask; whatever is no success is a failure of the test."""
        answer = self.client.get(path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        """The values of a query; no number is none."""
        result = self.get("/query", query=expression)["result"]
        return [value for row in result if (value := float(row["value"][1])) == value]

    def sees(self, expression: str) -> bool:
        """Whether a query has a result; not while Prometheus starts."""
        try:
            return bool(self.query(expression))
        except (httpx2.TransportError, ValueError):
            return False


def wait_for(condition: Callable[[], object], what: str, seconds: float = 40) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@contextmanager
def serving(project: Path, folder: Path) -> Iterator[httpx2.Client]:
    """Serve a project by gunicorn in production settings, with the services that it needs."""
    services = [
        name for name in ("postgresql", "redis") if (project / f"scripts/{name}.py").exists()
    ]
    python = [".venv/bin/python", "-m"]
    command = [word for name in services for word in (*python, f"scripts.{name}")]
    migrate = ".venv/bin/python -m app.migrate && " if (project / "app/migrate.py").exists() else ""
    serve = "exec .venv/bin/gunicorn -c gunicorn_conf.py 'tests.fed_app:create()'"
    (folder / "prom").mkdir()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "APP_ENVIRONMENT": "production",
        "APP_ALLOWED_HOSTS": "api.test",
        "APP_RATE_LIMIT": "30/minute",
        "APP_RELEASE": "20261121-093000-5a6b7c8d",
        "APP_SLOT": "blue",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "prom"),
        "SERVER_BIND": f"unix:{folder}/app.sock",
        "SERVER_WORKER_TIMEOUT_S": "5",
        "WEB_CONCURRENCY": "2",
    }
    with (folder / "log").open("w") as log:
        refused = environment | {"APP_ALLOWED_HOSTS": ""}
        conf = ["-c", "gunicorn_conf.py"]
        # Its line is one of those that logs.md finds.
        subprocess.run(
            [*python, "gunicorn", *conf],
            cwd=project,
            env=refused,
            stdout=log,
            stderr=log,
            check=False,
        )
        process = subprocess.Popen(
            [*command, "sh", "-c", migrate + serve],
            cwd=project,
            env=environment,
            stdout=log,
            stderr=log,
        )
    transport = httpx2.HTTPTransport(uds=f"{folder}/app.sock")
    try:
        with httpx2.Client(transport=transport, base_url="http://api.test", timeout=20) as client:
            wait_for(lambda: (folder / "app.sock").exists() and is_ready(client), "ready")
            yield client
    except BaseException as error:
        error.add_note((folder / "log").read_text()[-3000:])
        raise
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_ready(client: httpx2.Client) -> bool:
    """Whether the service answers."""
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def traffic(client: httpx2.Client, example: str) -> None:
    """Some requests of several clients, and of one that is limited."""
    own = {"X-Forwarded-For": CLIENT}
    assert client.get("/sleep?seconds=0.3", headers=own).status_code == 200
    assert client.get("/crash", headers=own | {"X-Request-ID": REQUEST_ID}).status_code == 500
    assert client.get("/nowhere", headers=own).status_code == 404
    for _ in range(10):
        assert client.get("/feed").status_code == 200
        assert client.get(example).status_code in {200, 405}
    greedy = {"X-Forwarded-For": GREEDY, "User-Agent": "greedy"}
    limited = [client.get("/feed", headers=greedy).status_code for _ in range(40)]
    # Each worker counts by itself where nothing is shared.
    assert set(limited) <= {200, 429}


def in_grafana(expression: str) -> str:
    """A query as Grafana would send it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [{"database": "postgresql", "cache": "redis"}, {"database": "none", "cache": "none"}],
    ids=row_id,
)
def test_a_prometheus_that_scrapes_a_server_can_answer_every_question(
    answers: Answers, template: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    needs("prometheus", "jq")
    project = render(template, tmp_path / "project", **answers)
    (project / "tests/fed_app.py").write_text(FED_APP)
    install = ["make", "--silent", "install", f"PYTHON={sys.executable}"]
    subprocess.run(install, cwd=project, check=True)
    example = "/api/v1/items" if answers["database"] != "none" else "/api/v1/ibans/check"
    for name in ("app", "prometheus"):
        (tmp_path / name).mkdir()

    with ExitStack() as stack:
        client = stack.enter_context(serving(project, tmp_path / "app"))
        forwarder = stack.enter_context(Forwarder(tmp_path / "app/metrics.sock"))
        stack.callback(forwarder.shutdown)
        threading.Thread(target=forwarder.serve_forever, daemon=True).start()
        target = f"127.0.0.1:{forwarder.server_address[1]}"
        prometheus = Prometheus(tmp_path / "prometheus", project, target)
        stack.enter_context(prometheus.running())
        wait_for(lambda: prometheus.sees(f'up{{job="{SLUG}"}} == 1'), "scraped")

        traffic(client, example)
        fed = f'http_request_duration_seconds_count{{job="{SLUG}", route="/feed", status="200"}}'
        wait_for(lambda: prometheus.sees(fed), "the first traffic is there")
        # A rate takes two scrapes that differ.
        traffic(client, example)
        with pytest.raises(httpx2.TransportError):
            client.get("/block")
        # What the worker that hung knew of a breaker ended with it.
        assert client.get("/feed").status_code == 200
        wait_for(lambda: prometheus.sees(f"changes({fed}[1m]) > 0"), "the second traffic is there")
        wait_for(lambda: prometheus.query(f'workers{{job="{SLUG}"}}') == [2], "two workers")

        asked = check_answers(project, prometheus)
        check_rules(prometheus)
        forwarder.shutdown()
        forwarder.server_close()
        down = f'ALERTS{{job="{SLUG}", alertname="ServiceDown"}}'
        wait_for(lambda: prometheus.sees(down), "an alert that the service is down")
    record_property(f"{row_id(answers)}: questions that Prometheus answered", asked)

    ask_the_log(project, tmp_path / "app/log")


def check_answers(project: Path, prometheus: Prometheus) -> int:
    """Evaluate everything; return how much that was.

    An alert has no result on a good day, so what it compares is asked for by itself: every metric,
    with every matcher, has series. A panel's query has a result as it stands; none may be empty.
    """
    alerts = {rule["alert"] for rule in rules_of(project)}
    empty = []
    asked = 0
    for place, expression in expressions(project).items():
        query = in_grafana(expression)
        result = prometheus.query(query)
        if place not in alerts and not result:
            empty.append(f"{place}: {query}")
        asked += 1
        for name, matchers in selectors(query):
            if not prometheus.query(f"count({name}{{{matchers}}})"):
                empty.append(f"{place}: {name}{{{matchers}}}")
            asked += 1
    assert not empty, "\n".join(empty)
    assert SLUG in prometheus.get("/label/job/values", **{"match[]": "app_build_info"})
    return asked


def check_rules(prometheus: Prometheus) -> None:
    """Prometheus has evaluated every rule, and has no complaint."""

    def unevaluated() -> list[str]:
        (group,) = prometheus.get("/rules")["groups"]
        return [rule["name"] for rule in group["rules"] if rule["health"] == "unknown"]

    wait_for(lambda: not unevaluated(), "every rule was evaluated")
    (group,) = prometheus.get("/rules")["groups"]
    assert not [rule for rule in group["rules"] if rule["health"] != "ok" or rule.get("lastError")]


def ask_the_log(project: Path, log: Path) -> None:
    """Run every command of logs.md on what the service has logged."""
    folder = log.parent / "asking"
    (folder / "deploy").mkdir(parents=True)
    stub = folder / "deploy/deploy.sh"
    stub.write_text(f'#!/bin/sh\ntest "$1 $2" = "logs --since" && cat {log}\n')
    stub.chmod(0o755)
    text = (project / "ops/logs.md").read_text()
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    (define,) = blocks(head)
    found = {}
    for section in sections:
        title = section.partition("\n")[0]
        for number, command in enumerate(blocks(section)):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", f"{define}\n{command}"],
                cwd=folder,
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stderr) == (0, ""), (title, done.stderr)
            found[f"{title}, {number}" if number else title] = done.stdout
    assert set(found) == set(FOUND)
    for title, pattern in FOUND.items():
        assert re.search(pattern, found[title], re.MULTILINE), (title, found[title])


def blocks(text: str) -> list[str]:
    """The commands in a text."""
    return re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
