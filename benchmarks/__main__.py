"""`python -m benchmarks`: measure, and write the figures into docs/performance.md."""

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import project as projects
from benchmarks.proxies import PROXIES
from benchmarks.server import HOST, Server, processors, serve

DOCUMENT = projects.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
# More than any run sends: clients count by their address.
RATE = "1000000/second"
LIMITED = "the generated service, with `APP_RATE_LIMIT`"

# What is switched off, and how.
FEATURES = {
    "the access line": {"APP_LOG_LEVEL": "WARNING"},
    "metrics": {"BENCH_WITHOUT": "metrics"},
    "security headers": {"BENCH_WITHOUT": "headers"},
    "budget and places": {"BENCH_WITHOUT": "budget"},
    "host names": {"BENCH_WITHOUT": "hosts"},
    "the proxy's headers": {"BENCH_WITHOUT": "forwarded"},
}

Row = tuple[str, ...]
Tables = dict[str, list[Row]]


@dataclass
class Measured:
    """What one of the compared was found to cost."""

    # Microseconds of processor time, in every turn.
    costs: list[float] = field(default_factory=list)
    # One of each start: seconds until the first answer, and bytes of the worker.
    started_s: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Bench:
    """The project that is measured, and how long."""

    def __init__(
        self, project: Path, folder: Path, *, requests: int, rounds: int = 1, starts: int = 1
    ) -> None:
        self.project = project
        self.folder = folder
        self.starts = starts
        self.rounds = rounds
        self.requests = requests
        self.number = 0

    @contextmanager
    def server(self, app: str, bind: str = "unix", **own: str) -> Iterator[Server]:
        """Serve one of the applications by gunicorn with one worker."""
        self.number += 1
        folder = self.folder / str(self.number)
        (folder / "prometheus").mkdir(parents=True)
        address = f"unix:{folder}/app.sock"
        if bind != "unix":
            address = f"http://{bind}"
        listen = bind if bind != "unix" else address
        environment = {
            "PYTHONPATH": str(self.project),
            "APP_ALLOWED_HOSTS": f"{HOST}, 127.0.0.1",
            # Only development may bind TCP.
            "APP_ENVIRONMENT": "production" if bind == "unix" else "development",
            "APP_LOG_FORMAT": "json",
            "APP_DOCS": "false",
            "SERVER_BIND": listen,
            "WEB_CONCURRENCY": "1",
            "PROMETHEUS_MULTIPROC_DIR": str(folder / "prometheus"),
            **own,
        }
        configuration = "gunicorn_conf.py" if app == "full" else "bench_conf.py"
        command = [str(self.project / ".venv/bin/python"), "-m", "gunicorn"]
        command += ["--config", str(self.project / configuration), "--bind", listen]
        with serve([*command, f"bench_apps:{app}()"], address, folder, environment) as server:
            yield server

    def in_turns(self, servers: Mapping[str, Server], rounds: int) -> dict[str, list[float]]:
        """Return what a request costs each of the servers, in microseconds, in every round."""
        for server in servers.values():
            server.load(self.requests // 4 or 1)
        costs: dict[str, list[float]] = {name: [] for name in servers}
        names = list(servers)
        for turn in range(rounds):
            # Each is first, and each is last.
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                costs[name].append(servers[name].cost(self.requests))
        return costs

    def measure(
        self, served: Mapping[str, Callable[[], AbstractContextManager[Server]]]
    ) -> dict[str, Measured]:
        """Compare servers, all started anew several times: no two processes are equally fast."""
        measured = {name: Measured() for name in served}
        for _ in range(self.starts):
            with ExitStack() as stack:
                servers = {name: stack.enter_context(start()) for name, start in served.items()}
                for name, costs in self.in_turns(servers, self.rounds).items():
                    measured[name].costs += costs
                for name, server in servers.items():
                    measured[name].started_s.append(server.started_s)
                    measured[name].memory.append(server.worker_memory())
        return measured


def ratio(one: list[float], other: list[float]) -> float:
    """Return by how much one costs more than the other; each turn is compared with itself."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def compare(bench: Bench) -> Tables:
    """Measure what a request costs, and a worker."""
    measured = bench.measure(
        {
            "an ASGI callable": partial(bench.server, "raw"),
            "FastAPI alone": partial(bench.server, "naked"),
            "the generated service": partial(bench.server, "full"),
            LIMITED: partial(bench.server, "full", APP_RATE_LIMIT=RATE),
        }
    )
    naked = measured["FastAPI alone"].costs
    requests: list[Row] = []
    workers: list[Row] = []
    for name, found_out in measured.items():
        cost = f"{statistics.median(found_out.costs):.0f} µs"
        requests.append((name, cost, f"{ratio(found_out.costs, naked):.2f}"))
        memory = f"{statistics.median(found_out.memory) / 1e6:.0f} MB"
        workers.append((name, memory, f"{statistics.median(found_out.started_s):.1f} s"))
    return {
        "| Served | Processor time of a request | Against FastAPI alone |": requests,
        "| Served | Memory of a worker (PSS) | From start to first answer |": workers,
    }


def features(bench: Bench) -> Tables:
    """Measure what each feature costs, by leaving it out."""
    without = {f"without {name}": environment for name, environment in FEATURES.items()}
    environments: dict[str, dict[str, str]] = {"all": {}} | without
    measured = bench.measure(
        {name: partial(bench.server, "full", **own) for name, own in environments.items()}
    )
    rows: list[Row] = [
        (name, f"{100 * (ratio(measured[name].costs, measured['all'].costs) - 1):+.0f} %")
        for name in without
    ]
    return {"| The generated service | Processor time of a request |": rows}


def ways(bench: Bench) -> Tables:
    """Measure the way to the service: by unix socket, by TCP, through a proxy."""
    with ExitStack() as stack:
        direct = stack.enter_context(bench.server("full"))
        by_tcp = stack.enter_context(bench.server("full", bind="127.0.0.1:18431"))
        servers = {"unix socket": direct, "TCP": by_tcp}
        for name, start in PROXIES.items():
            folder = bench.folder / name
            folder.mkdir()
            servers[name] = stack.enter_context(start(direct.address, folder))
        costs = bench.in_turns(servers, bench.starts * bench.rounds)
        rates = {name: server.load(bench.requests) for name, server in servers.items()}
    rows: list[Row] = []
    for name in servers:
        what = f"{name} in front, its own" if name in PROXIES else name
        cost = f"{statistics.median(costs[name]):.0f} µs"
        against = f"{ratio(costs[name], costs['unix socket']):.2f}"
        rows.append((what, cost, against, f"{rates[name]:.0f}/s"))
    return {"| The way | Processor time of a request | Against the unix socket | Requests |": rows}


def machine(project: Path) -> str:
    """Describe the machine, without its name, and what the project runs on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    python = subprocess.run(
        [project / ".venv/bin/python", "--version"], capture_output=True, text=True, check=True
    )
    served, loaded = processors()
    pinned = "server and load on one processor each" if served and loaded else "not pinned"
    return (
        f"{len(models)} processors ({models[0] if models else platform.machine()}), {pinned};"
        f" Linux {platform.release().split('-')[0]}, {python.stdout.strip()}"
    )


def versions(project: Path) -> str:
    """Name what was measured."""
    lines = (project / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split()[0].split("==") for line in lines if "==" in line)
    names = ("fastapi", "starlette", "gunicorn", "uvicorn", "uvloop")
    return ", ".join(f"{name} {pinned[name]}" for name in names)


def table(head: str, rows: list[Row]) -> str:
    """Return a table in Markdown."""
    columns = head.count("|") - 1
    lines = [head, "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def report(bench: Bench) -> str:
    """Measure everything; return it in Markdown."""
    measures: list[Callable[[Bench], Tables]] = [compare, features, ways]
    parts = [f"{machine(bench.project)}. {versions(bench.project)}.\n"]
    for measure in measures:
        parts += [table(head, rows) for head, rows in measure(bench).items()]
    return "\n".join(parts)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--starts", type=int, default=8, help="how often all are started anew")
    parser.add_argument("--rounds", type=int, default=10, help="how often each has its turn then")
    parser.add_argument("--requests", type=int, default=1000, help="requests in a turn")
    parser.add_argument(
        "--project", type=Path, help="a project made by an earlier run, instead of a new one"
    )
    parser.add_argument(
        "--python",
        default=str(Path(sys.executable).resolve()),
        help="the interpreter of the new one",
    )
    parser.add_argument("--write", type=Path, default=DOCUMENT, help="the document to write into")
    given = parser.parse_args()
    missing = [name for name in ("h2load", "taskset", "nginx", "caddy", "uv") if not found(name)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; h2load is in the package nghttp2-client")
    # As in production, where metrics of workers lie in memory.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=memory) as folder:
        project = given.project
        project = (
            project.resolve() if project else projects.make(Path(folder, "made"), given.python)
        )
        bench = Bench(
            project,
            Path(folder),
            requests=given.requests,
            rounds=given.rounds,
            starts=given.starts,
        )
        try:
            figures = report(bench)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            sys.exit(str(error))
    print(figures)
    text = given.write.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{given.write} lacks {BEGIN.strip()} or {END}")
    given.write.write_text(f"{before}{begin}\n{figures}\n{end}{after}")


def found(program: str) -> bool:
    """Return whether a program is installed; those of an administrator are out of a user's path."""
    return any(shutil.which(program, path=path) for path in (None, "/usr/sbin:/sbin"))


if __name__ == "__main__":
    main()
