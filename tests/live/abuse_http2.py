"""Abuse of HTTP/2, frame by frame."""

import select
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Self

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.live.abuse_http1 import CONTROLS, FOREIGN, PATIENCE_S, misled, planted
from tests.live.edge_routes import EDGE
from tests.live.site import Site

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What a server reads without having been asked whether it may.
FRAME_BYTES = 16_384
STREAMS = 10_000
FRAMES = 10_000
# A flood that is neither refused nor done by then has stalled.
FLOOD_S = 20

Fields = Sequence[tuple[bytes, bytes]]
Case = tuple[Fields, bytes | None]


class Connection:
    """A connection that sends any frame, and notes what comes back."""

    def __init__(self, site: Site, source: str, settings: dict[int, int] | None = None) -> None:
        self.tls: ssl.SSLSocket = site.connect(source=source, alpn=["h2"])
        assert self.tls.selected_alpn_protocol() == "h2"
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.received = b""
        # By stream: the status, or how it ended; and what bodies said.
        self.outcomes: dict[int, str] = {}
        self.body = b""
        self.pongs = 0
        self.over = False
        self.tls.settimeout(PATIENCE_S)
        self.tls.sendall(PREFACE)
        self.send(SettingsFrame(0, settings=settings or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.tls.close()

    def send(self, *frames: Frame) -> None:
        """Send frames; one that is cut off is noted."""
        try:
            self.tls.sendall(b"".join(frame.serialize() for frame in frames))
        except OSError:
            self.over = True

    def headers(
        self, stream: int, fields: Fields, *, end: bool = True, block: bytes | None = None
    ) -> list[Frame]:
        """The frames of a request's head; `block` is one that was encoded before."""
        encoded = self.encoder.encode(fields) if block is None else block
        parts = [
            encoded[start : start + FRAME_BYTES]
            for start in range(0, max(len(encoded), 1), FRAME_BYTES)
        ]
        frames: list[Frame] = [HeadersFrame(stream, data=parts[0])]
        frames += [ContinuationFrame(stream, data=part) for part in parts[1:]]
        if end:
            frames[0].flags.add("END_STREAM")
        frames[-1].flags.add("END_HEADERS")
        return frames

    def listen(self, until: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Read until something is so, or the other side has closed."""
        deadline = time.monotonic() + seconds
        while not self.over and not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.drain(left)

    def drain(self, seconds: float = 0) -> None:
        """Read what has come."""
        if not self.tls.pending() and not select.select([self.tls], [], [], seconds)[0]:
            return
        try:
            part = self.tls.recv(1 << 16)
        except OSError:
            part = b""
        self.over = self.over or not part
        self.received += part
        while len(self.received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self.received[:9]))
            if len(self.received) < 9 + length:
                return
            frame.parse_body(memoryview(self.received[9 : 9 + length]))
            self.received = self.received[9 + length :]
            self.note(frame)

    def note(self, frame: Frame) -> None:
        """Note what a frame says."""
        if isinstance(frame, HeadersFrame):
            fields = [(str(name), str(value)) for name, value in self.decoder.decode(frame.data)]
            self.outcomes.setdefault(frame.stream_id, dict(fields).get(":status", ""))
        elif isinstance(frame, RstStreamFrame):
            self.outcomes.setdefault(frame.stream_id, "reset")
        elif isinstance(frame, DataFrame):
            self.body += frame.data
        elif isinstance(frame, PingFrame) and "ACK" in frame.flags:
            self.pongs += 1
        elif isinstance(frame, GoAwayFrame) and frame.error_code:
            self.over = True

    def lives(self) -> bool:
        """Whether the connection is still served."""
        before = self.pongs
        self.send(PingFrame(0, opaque_data=b"lives???"))
        self.listen(lambda: self.pongs > before)
        return self.pongs > before

    def ending(self) -> str:
        """What became of the connection."""
        return "kept" if self.lives() else "cut"


def base(
    site: Site, path: bytes = b"/edge/see", method: bytes = b"GET"
) -> list[tuple[bytes, bytes]]:
    """The pseudo-headers of a request that is all right."""
    return [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", site.domain.encode()),
        (b":path", path),
    ]


def other(fields: Fields, **changed: bytes | None) -> list[tuple[bytes, bytes]]:
    """The same with pseudo-headers changed, or left out."""
    values = {f":{name}".encode(): value for name, value in changed.items()}
    kept = [(name, values.get(name, value)) for name, value in fields]
    return [(name, value) for name, value in kept if value is not None]


def requests(site: Site) -> dict[str, list[Case]]:
    """Single requests that are wrong, each with its body, if it has one."""
    right = base(site)
    post = base(site, f"{EDGE}/upload".encode(), b"POST")
    hidden = planted(site.domain)
    split = b"x\r\n\r\n" + hidden

    def each(*many: Fields) -> list[Case]:
        return [(fields, None) for fields in many]

    found: dict[str, list[Case]] = {
        "HTTP/2: a header that belongs to HTTP/1.1": each(
            [*right, (b"connection", b"close")],
            [*right, (b"upgrade", b"h2c")],
            [*right, (b"keep-alive", b"5")],
            [*right, (b"proxy-connection", b"close")],
            [*right, (b"te", b"gzip")],
        ),
        "HTTP/2: Transfer-Encoding": [
            ([*post, (b"transfer-encoding", b"chunked")], b"0\r\n\r\n" + hidden)
        ],
        "HTTP/2: a body longer than its length": [
            ([*post, (b"content-length", b"0")], hidden),
            ([*post, (b"content-length", b"5")], b"12345" + hidden),
        ],
        "HTTP/2: a body shorter than its length": [([*post, (b"content-length", b"50")], b"12345")],
        "HTTP/2: a length that is no number": [
            ([*post, (b"content-length", b"x")], b"12345"),
            ([*post, (b"content-length", b"+5")], b"12345"),
            ([*post, (b"content-length", b"5"), (b"content-length", b"6")], b"12345"),
        ],
        "HTTP/2: a request in a header, the path or the method": each(
            [*right, (b"x-odd", split)],
            [*right, (b"x-odd: y\r\n\r\n" + hidden, b"z")],
            other(right, path=b"/edge/see HTTP/1.1\r\nHost: x\r\n\r\n" + hidden),
            other(right, method=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + hidden),
            other(right, authority=site.domain.encode() + b"\r\n\r\n" + hidden),
        ),
        "HTTP/2: a space in the path": each(other(right, path=b"/edge/see HTTP/1.1")),
        "HTTP/2: a name in capitals": each([*right, (b"X-Odd", b"a")]),
        "HTTP/2: a name that is none": each(
            [*right, (b"", b"a")], [*right, (b"x y", b"a")], [*right, (b"x:y", b"a")]
        ),
        "HTTP/2: a pseudo-header is missing": each(
            other(right, path=None), other(right, method=None), other(right, scheme=None)
        ),
        "HTTP/2: no host": each(other(right, authority=None)),
        "HTTP/2: a pseudo-header twice": each(
            [*right, (b":path", b"/planted")], [*right, (b":authority", b"other.test")]
        ),
        "HTTP/2: an unknown pseudo-header": each(
            [*right, (b":odd", b"a")], [*right, (b":status", b"200")]
        ),
        "HTTP/2: a pseudo-header after a header": each([(b"x-odd", b"a"), *right]),
        "HTTP/2: a path without a slash": each(
            other(right, path=b""),
            other(right, path=b"*"),
            other(right, path=b"edge/see"),
            other(right, path=b"https://other.test/"),
        ),
        "HTTP/2: another scheme": each(
            other(right, scheme=b"http"),
            other(right, scheme=b"ftp"),
            other(right, scheme=b"https://other.test/?"),
        ),
        "HTTP/2: another host": each(other(right, authority=b"other.test")),
        "HTTP/2: another host in Host": each([*right, (b"host", b"other.test")]),
        "HTTP/2: a host with a user": each(
            other(right, authority=b"user@" + site.domain.encode()),
            other(right, authority=site.domain.encode() + b"@other.test"),
        ),
        "HTTP/2: CONNECT": each(
            [(b":method", b"CONNECT"), (b":authority", b"other.test:443")],
            other(right, method=b"CONNECT"),
            [*other(right, method=b"CONNECT"), (b":protocol", b"websocket")],
        ),
        "HTTP/2: TRACE": each(other(right, method=b"TRACE")),
        "HTTP/2: a method in small letters": each(other(right, method=b"get")),
        "HTTP/2: a header of 40 kB": each([*right, (b"x-long", b"a" * 40_000)]),
        "HTTP/2: 10,000 headers": each([*right, *((b"x-%d" % n, b"a") for n in range(10_000))]),
        "HTTP/2: a cookie in 5,000 crumbs": each([*right, *[(b"cookie", b"abc=def")] * 5_000]),
        "HTTP/2: a URL of 40 kB": each(other(right, path=b"/" + b"a" * 40_000)),
    }
    for name, character in {**CONTROLS, **FOREIGN}.items():
        odd = character + b'{"event":"forged"}'
        found[f"HTTP/2: {name} in the path or the query"] = each(
            other(right, path=b"/edge/" + odd), other(right, path=b"/edge/see?" + odd)
        )
        found[f"HTTP/2: {name} in a header"] = each(
            [*right, (b"user-agent", b"a" + odd)],
            [*right, (b"x-request-id", b"abcdefgh" + odd)],
            [*right, (b"x-odd", odd)],
        )
        found[f"HTTP/2: {name} in a header's name"] = each([*right, (b"x" + character, b"a")])
    return found


def ask(site: Site, source: str, case: Case) -> str:
    """Make a request; return its status, `reset` for the stream, `cut` for the connection."""
    deadline = time.monotonic() + 2 * FLOOD_S
    # A flood from the same address may have taken all that it may ask.
    while (outcome := ask_once(site, source, case)) == "429" and time.monotonic() < deadline:
        time.sleep(1)
    return outcome


def ask_once(site: Site, source: str, case: Case) -> str:
    """Make a request, whatever else is asked from its address."""
    fields, body = case
    with Connection(site, source, {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}) as connection:
        connection.send(*connection.headers(1, fields, end=body is None))
        if body is not None:
            connection.send(DataFrame(1, data=body, flags=["END_STREAM"]))
        connection.listen(lambda: 1 in connection.outcomes)
        outcome = connection.outcomes.get(1, "cut" if connection.over else "held")
        if outcome == "200":
            connection.listen(lambda: b"}" in connection.body[-2:], 1)
        return misled(site, source, connection.body) or outcome


# -------------------------------------------------------------------- floods


def flood(connection: Connection, frames: Iterable[Iterable[Frame]]) -> None:
    """Send groups of frames as fast as they are taken, reading what comes meanwhile."""
    deadline = time.monotonic() + FLOOD_S
    rest = iter(frames)
    while group := list(islice(rest, 100)):
        connection.send(*(frame for several in group for frame in several))
        connection.drain()
        if connection.over or time.monotonic() > deadline:
            return


def ids() -> Iterator[int]:
    """Numbers of streams that a client may begin."""
    return count(1, 2)


def rapid_reset(site: Site, source: str) -> str:
    """Streams that are given up as soon as they are begun."""
    with Connection(site, source) as connection:
        fields = base(site)

        def streams() -> Iterator[list[Frame]]:
            for number, stream in enumerate(ids()):
                if number == STREAMS:
                    return
                yield [*connection.headers(stream, fields), RstStreamFrame(stream, 8)]

        flood(connection, streams())
        return connection.ending()


def many_streams(site: Site, source: str) -> str:
    """A thousand streams at once."""
    with Connection(site, source) as connection:
        fields = base(site, f"{EDGE}/slow?seconds=1".encode())
        streams = [stream for _, stream in zip(range(1000), ids(), strict=False)]
        flood(connection, (connection.headers(stream, fields) for stream in streams))
        connection.listen(lambda: len(connection.outcomes) == len(streams), 10)
        # How many come at once decides whether they meet the limit of a second, too.
        found = {*connection.outcomes.values(), *(["cut"] if connection.over else [])}
        return ", ".join(sorted(found - {"429"}))


def continuation(site: Site, source: str, content: bytes) -> str:
    """A head that never ends."""
    with Connection(site, source) as connection:
        first = connection.headers(1, base(site))[0]
        first.flags.discard("END_HEADERS")
        connection.send(first)
        flood(connection, ([ContinuationFrame(1, data=content)] for _ in range(FRAMES)))
        connection.listen(lambda: 1 in connection.outcomes, 5)
        return "cut" if connection.over else connection.outcomes.get(1, "kept")


def long_head(site: Site, source: str) -> str:
    """Ten MB of one head."""
    field = hpack.Encoder().encode([(b"x-odd", b"a" * 900)])
    return continuation(site, source, field)


def empty_head(site: Site, source: str) -> str:
    """Frames of one head with nothing in them."""
    return continuation(site, source, b"")


def settings(site: Site, source: str) -> str:
    """Settings, each of which has to be confirmed."""
    with Connection(site, source) as connection:
        frame = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 70_000})
        flood(connection, ([frame] for _ in range(FRAMES)))
        return connection.ending()


def pings(site: Site, source: str) -> str:
    """Pings, each of which has to be answered."""
    with Connection(site, source) as connection:
        flood(connection, ([PingFrame(0, opaque_data=b"12345678")] for _ in range(FRAMES)))
        return connection.ending()


def empty_data(site: Site, source: str) -> str:
    """A body in frames with nothing in them."""
    with Connection(site, source) as connection:
        connection.send(
            *connection.headers(1, base(site, f"{EDGE}/upload".encode(), b"POST"), end=False)
        )
        flood(connection, ([DataFrame(1, data=b"")] for _ in range(FRAMES)))
        return connection.ending()


def priorities(site: Site, source: str) -> str:
    """Priorities of streams that nobody began."""
    with Connection(site, source) as connection:
        frames = (
            [PriorityFrame(stream, depends_on=0, stream_weight=1)]
            for _, stream in zip(range(FRAMES), ids(), strict=False)
        )
        flood(connection, frames)
        return connection.ending()


def bomb(site: Site, source: str) -> str:
    """A short head that is long once it is unpacked."""
    with Connection(site, source) as connection:
        encoder = connection.encoder
        fields = [*base(site), (b"x-bomb", b"a" * 3900)]
        block = encoder.encode(fields)
        # Now it has a number, and each mention takes a byte.
        again = encoder.encode([(b"x-bomb", b"a" * 3900)])
        assert len(again) == 1
        connection.send(*connection.headers(1, [], block=block + again * 15_000))
        connection.listen(lambda: 1 in connection.outcomes)
        return connection.outcomes.get(1, "cut" if connection.over else "held")


def large_body(site: Site, source: str) -> str:
    """A body of which nobody says how long it is."""
    parts = [bytes(100_000)] * 110
    answer = site.ask("POST", f"{EDGE}/upload", body=parts, http2=True, source=source)
    return str(answer.status or "cut")


def windows(site: Site, source: str) -> str:
    """A window beyond what may be."""
    with Connection(site, source) as connection:
        connection.send(*[WindowUpdateFrame(0, window_increment=(1 << 31) - 1)] * 2)
        return connection.ending()


def impossible(site: Site, source: str) -> str:
    """Frames that no client may send."""
    found = []
    for frame in (
        DataFrame(1, data=b"x"),
        RstStreamFrame(1, 8),
        ContinuationFrame(1, data=b""),
        HeadersFrame(2, data=b"", flags=["END_HEADERS"]),
        DataFrame(3, data=bytes(1 << 20)),
        HeadersFrame(1, data=b"\xff\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"]),
        PingFrame(0, opaque_data=b""),
    ):
        with Connection(site, source) as connection:
            if isinstance(frame, PingFrame):
                connection.tls.sendall(b"\0\0\4\6\0\0\0\0\0ping")
            else:
                connection.send(frame)
            found.append(connection.ending())
    return ", ".join(sorted(set(found)))


FLOODS: dict[str, Callable[[Site, str], str]] = {
    "HTTP/2: rapid reset, 10,000 streams": rapid_reset,
    "HTTP/2: 1,000 streams at once": many_streams,
    "HTTP/2: 10,000 CONTINUATION frames": long_head,
    "HTTP/2: 10,000 empty CONTINUATION frames": empty_head,
    "HTTP/2: 10,000 SETTINGS": settings,
    "HTTP/2: 10,000 PINGs": pings,
    "HTTP/2: 10,000 empty DATA frames": empty_data,
    "HTTP/2: 10,000 PRIORITY frames": priorities,
    "HTTP/2: 4 kB repeated 15,000 times by a byte each": bomb,
    "HTTP/2: a body of 11 MB without its length": large_body,
    "HTTP/2: a window that overflows": windows,
    "HTTP/2: frames that no client may send": impossible,
}


def attack(site: Site, sources: list[str]) -> dict[str, str]:
    """Try everything; the outcome of each is what came of its variants, without repeating."""
    jobs: list[tuple[str, Callable[[str], str]]] = [
        # A default binds the name now; mypy cannot infer such a lambda.
        (name, lambda source, flooding=flooding: flooding(site, source))  # type: ignore[misc]
        for name, flooding in FLOODS.items()
    ]
    for name, cases in requests(site).items():
        jobs += [
            (name, lambda source, case=case: ask(site, source, case))  # type: ignore[misc]
            for case in cases
        ]

    def one(numbered: tuple[int, tuple[str, Callable[[str], str]]]) -> tuple[str, str]:
        number, (name, job) = numbered
        return name, job(sources[number % len(sources)])

    found: dict[str, list[str]] = {}
    with ThreadPoolExecutor(12) as pool:
        for name, outcome in pool.map(one, enumerate(jobs)):
            found.setdefault(name, []).append(outcome)
    return {name: ", ".join(sorted(set(outcomes))) for name, outcomes in found.items()}
