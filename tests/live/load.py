"""Requests that never stop and are never repeated: anything but the expected answer is a failure.

`Load` runs this module as a process of its own. It writes a line for each request that has ended.
"""

import argparse
import asyncio
import json
import random
import select
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

FAST = frozenset({"get", "post"})
# The limit for any request; the longest takes 8 s by itself.
TIMEOUT_S = 15.0
EVENTS, EVENT_GAP_S = 80, 0.1
# A gap between two events that is longer than this is not "in time".
LATE_S = 5.0
SLOW_S = 2.0
IDLE_CONNECTIONS = 6


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has ended."""

    start: float
    duration: float
    kind: str
    failure: str
    release: str
    reused: bool

    @property
    def unanswered(self) -> bool:
        """Whether its connection was closed before a byte of an answer came."""
        signs = ("IncompleteReadError: 0 bytes", "ConnectionResetError", "BrokenPipeError")
        return self.failure.startswith(signs)

    @property
    def lost_idle(self) -> bool:
        """Whether it met a kept connection that was being closed, as HTTP/1.1 allows."""
        return self.reused and self.unanswered

    @property
    def end(self) -> float:
        """When it had ended."""
        return self.start + self.duration


class Refused(Exception):  # noqa: N818 - the answer is refused, by us
    """The answer is not what was expected."""


class Connection:
    """One connection, and a parser that accepts nothing but plain HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.last = False
        self.used = 0

    async def ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        """Send a request and read the head of its answer."""
        self.used += 1
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        version, status, *_ = first.split(" ")
        if version != "HTTP/1.1":
            raise Refused(f"answered with {first!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self.last = headers.get("connection", "").lower() == "close"
        return int(status), headers

    async def chunk(self) -> bytes:
        """Read one chunk of a body; the last one is empty."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def body(self, headers: dict[str, str]) -> bytes:
        """Read a body to its end."""
        if headers.get("transfer-encoding") == "chunked":
            chunks = []
            while chunk := await self.chunk():
                chunks.append(chunk)
            return b"".join(chunks)
        return await self.reader.readexactly(int(headers["content-length"]))

    def ended(self) -> bool:
        """Whether the other side has closed it while it was idle: nothing else is to be read."""
        if self.reader.at_eof() or self.writer.transport.is_closing():
            return True
        # What has arrived and was not read yet, on a busy machine.
        waiting = select.poll()
        waiting.register(self.writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def close(self) -> None:
        """Close it without a farewell."""
        self.writer.transport.abort()


class Client:
    """The mix of requests."""

    def __init__(self, options: argparse.Namespace, out: IO[str]) -> None:
        self.options, self.out = options, out
        self.tls = ssl.create_default_context(cafile=options.ca)
        self.idle: deque[Connection] = deque()
        self.counts: Counter[str] = Counter()
        self.certificates: set[str] = set()

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection(
            self.options.address,
            443,
            ssl=self.tls,
            server_hostname=self.options.domain,
            # By default 30 s are waited for a farewell.
            ssl_shutdown_timeout=1,
        )
        certificate = writer.get_extra_info("peercert")
        self.certificates.add(certificate["serialNumber"])
        return Connection(reader, writer)

    def take_idle(self) -> Connection | None:
        """Take the connection that was idle longest, if the server has not closed it meanwhile."""
        while self.idle:
            connection = self.idle.popleft()
            if not connection.ended():
                return connection
            self.counts["closed while idle"] += 1
            connection.close()
        return None

    async def request(self, kind: str, method: str, path: str, body: bytes, *, keep: bool) -> None:
        """Make one request and write down how it went."""
        started, clock = time.time(), time.perf_counter()
        failure = release = ""
        connection = self.take_idle() if keep else None
        reused = connection is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if connection is None:
                    connection = await self.connect()
                head = f"{method} {self.options.prefix}{path} HTTP/1.1\r\n"
                head += f"Host: {self.options.domain}\r\n"
                if not keep:
                    head += "Connection: close\r\n"
                if body:
                    head += f"Content-Length: {len(body)}\r\nContent-Type: text/plain\r\n"
                status, headers = await connection.ask(f"{head}\r\n".encode() + body)
                release = headers.get("x-release", "")
                if status != 200:
                    raise Refused(f"status {status}")
                if kind == "events":
                    await self.events(connection)
                elif (answer := await connection.body(headers)) != (body or kind.encode()):
                    raise Refused(f"answered {answer[:80]!r}")
        except Refused as error:
            failure = str(error)
        except (OSError, EOFError, ValueError, KeyError) as error:
            failure = f"{type(error).__name__}: {error}"
        duration = time.perf_counter() - clock
        if connection is not None:
            full = len(self.idle) >= IDLE_CONNECTIONS
            if failure or not keep or connection.last or full:
                connection.close()
            else:
                self.idle.append(connection)
        self.counts[kind] += 1
        record = Request(started, round(duration, 4), kind, failure, release, reused)
        self.out.write(f"{json.dumps(asdict(record))}\n")

    async def events(self, connection: Connection) -> None:
        """Read a stream of events, all of them, in order and in time."""
        rest, seen, last = b"", 0, time.perf_counter()
        while chunk := await connection.chunk():
            *lines, rest = (rest + chunk).split(b"\n\n")
            for line in lines:
                if line != b"data: %d" % seen:
                    raise Refused(f"event {seen} is {line!r}")
                seen += 1
            now = time.perf_counter()
            if now - last > LATE_S:
                raise Refused(f"event {seen} came {now - last:.1f} s after the one before")
            last = now
        if seen != EVENTS:
            raise Refused(f"{seen} events of {EVENTS}")

    async def stream(self) -> None:
        """Have one stream open all the time."""
        while True:
            # A finished one is followed at once, a refused one not in a tight loop.
            await asyncio.gather(
                self.request("events", "GET", "/events", b"", keep=False), asyncio.sleep(0.2)
            )

    async def run(self) -> None:
        """Ask at the given rate until a signal comes, then wait for what is open."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        stream = asyncio.create_task(self.stream())
        open_requests: set[asyncio.Task[None]] = set()
        clock, count = time.perf_counter(), 0
        while not stop.is_set():
            kind = (
                "slow" if count % self.options.rate == 0 else random.choice(["get", "get", "post"])
            )
            keep = random.random() < 0.6
            body = random.randbytes(600).hex().encode() if kind == "post" else b""
            method, path = ("POST", "/echo") if body else ("GET", f"/{kind}")
            task = asyncio.create_task(self.request(kind, method, path, body, keep=keep))
            open_requests.add(task)
            task.add_done_callback(open_requests.discard)
            count += 1
            # The rate holds whatever the server does; an open loop hides no stall.
            late = clock + count / self.options.rate - time.perf_counter()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(late, 0.001))
        await asyncio.gather(*open_requests)
        await asyncio.wait([stream], timeout=EVENTS * EVENT_GAP_S + LATE_S)
        stream.cancel()
        summary = {"requests": dict(self.counts), "certificates": len(self.certificates)}
        print(json.dumps(summary | {"cpu_s": round(time.process_time(), 2)}), flush=True)  # noqa: T201 - its output is its answer


class Load:
    """The client at work, inside a `with`, and what can be asked about its requests."""

    def __init__(
        self, out: Path, address: str, domain: str, prefix: str, ca: Path, rate: int
    ) -> None:
        self.out, self.summary = out, ""
        self.command = [
            *(sys.executable, "-m", "tests.live.load", f"--out={out}", f"--address={address}"),
            *(f"--domain={domain}", f"--prefix={prefix}", f"--ca={ca}", f"--rate={rate}"),
        ]

    def __enter__(self) -> Self:
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, cwd=root)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.summary = self.process.communicate(timeout=2 * TIMEOUT_S)[0]
        finally:
            self.process.kill()

    def requests(self) -> list[Request]:
        """Every request that has ended so far."""
        assert self.process.poll() is None or self.summary, "the load client died"
        lines = self.out.read_text().splitlines(keepends=True) if self.out.exists() else []
        return [Request(**json.loads(line)) for line in lines if line.endswith("\n")]

    def settle(self, seconds: float = 20) -> None:
        """Wait until every request that began before now has ended, except for the stream."""
        began, deadline = time.time(), time.monotonic() + seconds
        # The slow ones begin once a second, in order.
        while not any(one.start > began and one.kind == "slow" for one in self.requests()):
            assert time.monotonic() < deadline, "the load has stopped"
            time.sleep(0.2)


def between(requests: Iterable[Request], begin: float, end: float) -> list[Request]:
    """The requests that were open at some time between two moments."""
    return [one for one in requests if one.end >= begin and one.start <= end]


def failures(requests: Iterable[Request]) -> list[str]:
    """Why requests failed, one line for each."""
    return [
        f"{one.start:.2f} +{one.duration:.2f} s {one.kind}"
        f"{' on a kept connection' if one.reused else ''}: {one.failure}"
        for one in requests
        if one.failure
    ]


def worst(requests: Iterable[Request], moment: float, around: float) -> float:
    """The longest that a fast request took which was open within `around` seconds of a moment."""
    near = between(requests, moment - around, moment + around)
    return max((one.duration for one in near if one.kind in FAST), default=0.0)


def added(requests: list[Request], moment: float, around: float) -> float:
    """Seconds by which the worst around a moment exceeds the worst of the steady time before it."""
    steady = [worst(requests, moment - distance, around) for distance in (3, 4, 5)]
    return worst(requests, moment, around) - max(steady)


def main() -> None:
    """Run the client."""
    parser = argparse.ArgumentParser()
    for name in ("out", "address", "domain", "prefix", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rate", type=int, required=True)
    options = parser.parse_args()
    with Path(options.out).open("a", buffering=1) as out:
        asyncio.run(Client(options, out).run())


if __name__ == "__main__":
    main()
