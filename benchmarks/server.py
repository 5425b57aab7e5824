"""A server that is measured, and the load on it."""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

PATH = "/api/v1/things/7"
HOST = "api.test"
# What a proxy sends along.
HEADERS = {
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Proto": "https",
    "X-Request-ID": "0123456789abcdef0123456789abcdef",
    "User-Agent": "benchmark",
}
CLIENTS = 8
START_WITHIN_S = 60


def processors() -> tuple[list[str], list[str]]:
    """Return what pins a server to one processor, and the load to another, if there is one."""
    able = sorted(os.sched_getaffinity(0))
    if len(able) < 2:
        return [], []
    return ["taskset", "--cpu-list", str(able[0])], ["taskset", "--cpu-list", str(able[1])]


@dataclass
class Server:
    """Processes that serve, and where they do."""

    process: subprocess.Popen[bytes]
    address: str
    # Seconds from the start of the process to its first answer.
    started_s: float = 0.0

    def processes(self) -> list[psutil.Process]:
        """Return the main process, then its workers."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the processor time that all of them have used, in seconds, user and system."""
        used_ns = 0
        for process in self.processes():
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                with suppress(FileNotFoundError):
                    used_ns += int((task / "schedstat").read_text().split()[0])
        return used_ns / 1e9

    def worker_memory(self) -> int:
        """Return the bytes of a worker, with its share of what several have (PSS)."""
        return max(worker.memory_full_info().pss for worker in self.processes()[1:])

    def client(self) -> httpx2.Client:
        """Return a client of it."""
        if self.address.startswith("unix:"):
            transport = httpx2.HTTPTransport(uds=self.address.removeprefix("unix:"))
            return httpx2.Client(transport=transport, base_url=f"http://{HOST}")
        return httpx2.Client(base_url=self.address)

    def load(self, requests: int) -> float:
        """Send requests from another processor; return how many were answered in a second.

        Raises:
            RuntimeError: one of them was not answered with a 2xx.
        """
        command = [*processors()[1], "h2load", "--h1", f"--requests={requests}"]
        command += [f"--clients={CLIENTS}", "--threads=1"]
        command += [f"--header={name}: {value}" for name, value in HEADERS.items()]
        if self.address.startswith("unix:"):
            command += [f"--base-uri={self.address}", f"http://{HOST}{PATH}"]
        else:
            command += [f"{self.address}{PATH}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counted = re.search(r"status codes: (\d+) 2xx", done.stdout)
        rate = re.search(r"([\d.]+) req/s", done.stdout)
        if not counted or int(counted[1]) != requests or not rate:
            raise RuntimeError(f"not every request was answered:\n{done.stdout}")
        return float(rate[1])

    def cost(self, requests: int) -> float:
        """Return the processor time that one request takes, in microseconds."""
        before = self.cpu_s()
        self.load(requests)
        return (self.cpu_s() - before) / requests * 1e6


@contextmanager
def serve(
    command: list[str], address: str, folder: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Start a server on one processor, and give it once it answers; at the end it is stopped.

    Raises:
        RuntimeError: it ended, or gave no answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*processors()[0], *command],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        # As in production, somebody else keeps what it writes.
        keeper = subprocess.Popen([*processors()[1], "cat"], stdin=process.stdout, stdout=output)
        process.stdout.close()
    server = Server(process, address)
    try:
        with server.client() as client:
            while not _answers(client):
                if process.poll() is not None or time.monotonic() - began > START_WITHIN_S:
                    raise RuntimeError(f"{command} does not serve:\n{log.read_text()[-4000:]}")
                time.sleep(0.005)
        server.started_s = time.monotonic() - began
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        keeper.wait()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get(PATH, headers=HEADERS).status_code == 200
    except httpx2.TransportError:
        return False
