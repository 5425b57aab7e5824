"""A service on a socket of its own that answers as it is told, also as no good service would."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

# Writes one answer; what it returns says whether the connection stays.
Answer = Callable[[asyncio.StreamWriter], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def reply(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    """Answer in full; `retry_after` is for Retry-After."""

    async def answer(writer: asyncio.StreamWriter) -> bool:
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return True

    return answer


async def hang(writer: asyncio.StreamWriter) -> bool:
    """Never answer."""
    await asyncio.sleep(60)
    return False


async def close(writer: asyncio.StreamWriter) -> bool:
    """Close instead of answering."""
    return False


async def reset(writer: asyncio.StreamWriter) -> bool:
    """Reset the connection in the middle of the body."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()
    return False


async def drip(writer: asyncio.StreamWriter) -> bool:
    """Send a byte of the body now and then, so that no read takes long."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.05)
    return True


async def answer_and_close(writer: asyncio.StreamWriter) -> bool:
    """Answer, and close the connection without having said so."""
    await reply(200)(writer)
    return False


@dataclass
class Peer:
    """Gives `answers` one after another, the last of them for ever; `seen` is what it was asked."""

    url: str = ""
    answers: list[Answer] = field(default_factory=lambda: [reply(200)])
    seen: list[Seen] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def asked(self, times: int) -> None:
        """Wait until it was asked so often in all."""
        while len(self.seen) < times:
            self.news.clear()
            await self.news.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, target, _ = first.split(" ")
                self.seen.append(Seen(method, target, headers, body))
                self.news.set()
                if not await self.next_answer()(writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def next_answer(self) -> Answer:
        """Return what comes next."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@asynccontextmanager
async def open_peer(*answers: Answer) -> AsyncGenerator[Peer]:
    """Serve until the end, and cut what hangs then."""
    peer = Peer()
    if answers:
        peer.answers = list(answers)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        try:
            await peer.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    peer.url = f"http://127.0.0.1:{port}"
    try:
        yield peer
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections)
