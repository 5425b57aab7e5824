"""Abuse by many connections that do next to nothing."""

import asyncio
import json
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

from tests.live.abuse_http1 import head
from tests.live.edge_routes import EDGE
from tests.live.site import Site

SLOW, IDLE, STOPPED = 300, 1000, 20
# Longer than the headers may take, and than a pause between two parts of a body.
DRIP_S, DRIPS = 4, 6
# Longer than a client may read nothing at all.
READ_S = 42
# The bodies come first: there must be more than 200 at once.
NEXT_S = 5
# Debian's nginx has room for some 1,500 connections: the idle ones come when others have gone.
LATER_S = 20
# So many shake hands at once.
OPENING = 60
ROOM = 1 << 16
# More than this side can have been keeping of what was not read.
BUFFERED = 800_000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Crowd:
    """Clients that come from one address."""

    def __init__(self, address: str, domain: str, ca: str, source: str) -> None:
        self.address, self.domain, self.source = address, domain, source
        self.tls = ssl.create_default_context(cafile=ca)
        self.opening = asyncio.Semaphore(OPENING)

    async def open(self, *, tls: bool = True) -> Streams:
        """Open a connection; one that this computer is too busy for is tried again."""
        for _ in range(4):
            with suppress(OSError):
                return await self.once(tls=tls)
        return await self.once(tls=tls)

    async def once(self, *, tls: bool) -> Streams:
        """Open a connection, which reads no more than it must."""
        context: ssl.SSLContext | None = self.tls if tls else None
        async with self.opening:
            plain = socket.socket()
            # Else the kernel would read for it.
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            plain.bind((self.source, 0))
            plain.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plain, (self.address, 443))
            name = self.domain if tls else None
            reader, writer = await asyncio.open_connection(
                sock=plain, limit=1024, ssl=context, server_hostname=name
            )
            if tls:
                # Nor would TLS.
                # Only the transport of TLS has it.
                writer.transport.set_read_buffer_limits(high=1024)  # type: ignore[attr-defined]
            return reader, writer

    async def slow_headers(self) -> str:
        """A header each now and then."""
        await asyncio.sleep(NEXT_S)
        reader, writer = await self.open()
        writer.write(f"GET {EDGE}/see HTTP/1.1\r\nHost: {self.domain}\r\n".encode())
        return await drip(reader, writer, b"X-Slow: x\r\n")

    async def slow_body(self) -> str:
        """A byte of a body each now and then."""
        reader, writer = await self.open()
        writer.write(head(self.domain, b"Content-Length: 1000"))
        return await drip(reader, writer, b"x")

    async def body_that_stops(self) -> str:
        """A part of a body, and then nothing."""
        reader, writer = await self.open()
        writer.write(head(self.domain, b"Content-Length: 1000") + b"x")
        return await drip(reader, writer, b"")

    async def slow_reader(self) -> str:
        """A large answer that nobody reads."""
        await asyncio.sleep(NEXT_S)
        reader, writer = await self.open()
        target = f"GET {EDGE}/download?parts=40&gap=0 HTTP/1.1".encode()
        writer.write(head(self.domain, b"Connection: close", first=target))
        status = await reader.read(12)
        if not status.endswith(b" 200"):
            return status.decode().rpartition(" ")[2]
        await asyncio.sleep(READ_S)
        received = 0
        with suppress(OSError):
            while received < BUFFERED and (part := await asyncio.wait_for(reader.read(ROOM), 20)):
                received += len(part)
        writer.transport.abort()
        return "held" if received >= BUFFERED else "cut"

    async def idle(self) -> str:
        """A connection without a request."""
        await asyncio.sleep(LATER_S)
        reader, writer = await self.open()
        return await drip(reader, writer, b"")

    async def mute(self) -> str:
        """A connection without even TLS."""
        await asyncio.sleep(LATER_S)
        reader, writer = await self.open(tls=False)
        return await drip(reader, writer, b"")


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, part: bytes) -> str:
    """Send a little now and then; return the status that came, or how it ended."""
    received = b""
    try:
        for _ in range(DRIPS):
            with suppress(TimeoutError):
                received = await asyncio.wait_for(reader.read(12), DRIP_S)
                break
            writer.write(part)
        else:
            return "held"
    except OSError:
        pass
    finally:
        writer.transport.abort()
    return received.decode("latin-1").rpartition(" ")[2] if received else "cut"


async def together(address: str, domain: str, ca: str, sources: list[str]) -> dict[str, str]:
    """All of them at once; the outcomes of a crowd without repeating."""
    crowds = [Crowd(address, domain, ca, source) for source in sources]
    many: dict[str, list[Coroutine[None, None, str]]] = {
        f"{SLOW} slow headers": [crowds[0].slow_headers() for _ in range(SLOW)],
        f"{SLOW} slow bodies": [crowds[1].slow_body() for _ in range(SLOW)],
        f"{STOPPED} bodies that stop": [crowds[2].body_that_stops() for _ in range(STOPPED)],
        f"{SLOW} readers that do not read": [crowds[3].slow_reader() for _ in range(SLOW)],
        f"{IDLE:,} idle connections": [crowds[4].idle() for _ in range(IDLE)],
        f"{IDLE:,} connections without TLS": [crowds[5].mute() for _ in range(IDLE)],
    }

    async def outcome(crowd: list[Coroutine[None, None, str]]) -> str:
        found = await asyncio.gather(*crowd, return_exceptions=True)
        # Whom the server does not let in has been cut off as well.
        words = ["cut" if isinstance(one, OSError) else str(one) for one in found]
        return ", ".join(sorted(set(words)))

    outcomes = await asyncio.gather(*(outcome(crowd) for crowd in many.values()))
    return dict(zip(many, outcomes, strict=True))


def attack(site: Site, sources: list[str]) -> dict[str, str]:
    """Try everything, in a process of its own: among many threads it would be too slow itself."""
    arguments = [site.address, site.domain, str(site.ca), *sources]
    said = subprocess.run(
        [sys.executable, "-m", "tests.live.abuse_crowds", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    outcomes: dict[str, str] = json.loads(said)
    return outcomes


def main() -> None:
    """Run the clients; the outcomes are printed."""
    address, domain, ca, *sources = sys.argv[1:]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    print(json.dumps(asyncio.run(together(address, domain, ca, sources))))  # noqa: T201 - its output is its answer


if __name__ == "__main__":
    main()
