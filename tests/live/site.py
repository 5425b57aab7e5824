"""A service behind its proxy, as a client and as an operator see it."""

import base64
import json
import select
import shutil
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from tests.live import authority, machine
from tests.live.authority import Authority
from tests.live.edge_routes import EdgeProject
from tests.live.machine import Machine, call
from tests.live.project import DOMAIN, SLUG, Operator, Project
from tests.live.rehearsal import CA, interpreter
from tests.live.target import Row, Target

Headers = Iterable[tuple[str | bytes, str | bytes]]
PROGRAMS = ("chromedriver", "chromium", "curl", "h2load")
# Other clients' addresses, on this side of the machine's network.
CLIENTS = 24


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 where the connection was cut without an answer."""

    status: int
    # Names in lower case, in the order in which they came.
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    protocol: str = ""
    # Whether everything that was announced has come.
    complete: bool = True

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for found, value in self.headers if found == name]

    def get(self, name: str) -> str:
        """The one value of a header; empty without one."""
        found = self.all(name)
        assert len(found) <= 1, f"{name} is there {len(found)} times: {found}"
        return found[0] if found else ""

    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body)

    def __str__(self) -> str:
        """All of it, for messages."""
        return f"{self.protocol} {self.status} {dict(self.headers)} {self.body[:300]!r}"


CUT = Answer(0, complete=False)


@dataclass
class Site:
    """A service that is up behind its proxy."""

    row: Row
    project: Project
    machine: Machine
    target: Target
    operator: Operator
    # Whom to trust.
    ca: Path
    domain: str
    address: str = field(init=False)
    address6: str = field(init=False)
    # Other clients' addresses, IPv4 and IPv6.
    clients: list[str] = field(init=False)
    clients6: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.address, self.address6 = self.machine.host, self.machine.host6
        net = self.machine.gateway.rpartition(".")[0]
        net6 = self.machine.gateway6.rpartition(":")[0]
        self.clients = [f"{net}.{number}" for number in range(10, 10 + CLIENTS)]
        self.clients6 = [f"{net6}:{number}" for number in range(10, 10 + CLIENTS)]
        device = f"ve-{self.machine.name}"
        for address in self.clients:
            call("ip", "address", "replace", f"{address}/24", "dev", device)
        for address in self.clients6:
            call("ip", "address", "replace", f"{address}/64", "dev", device, "nodad")

    # ------------------------------------------------------------ a client

    def plain(
        self, port: int = 443, *, source: str | None = None, timeout: float = 20
    ) -> socket.socket:
        """A TCP connection, over IPv6 from a `source` that is such an address."""
        address = self.address6 if source and ":" in source else self.address
        own = (source, 0) if source else None
        return socket.create_connection((address, port), timeout, own)

    def context(self) -> ssl.SSLContext:
        """TLS that trusts the authority."""
        return ssl.create_default_context(cafile=str(self.ca))

    def connect(
        self,
        *,
        source: str | None = None,
        sni: str | None = None,
        alpn: Iterable[str] = (),
        context: ssl.SSLContext | None = None,
        timeout: float = 20,
    ) -> ssl.SSLSocket:
        """A TLS connection for byte-exact requests; `sni` is the site's name, or none if empty."""
        context = context or self.context()
        name = self.domain if sni is None else sni
        if name != self.domain:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        plain = self.plain(source=source, timeout=timeout)
        try:
            return context.wrap_socket(plain, server_hostname=name or None)
        except BaseException:
            plain.close()
            raise

    def ask(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: Headers = (),
        body: bytes | Iterable[bytes] | None = None,
        source: str | None = None,
        http2: bool = False,
        http: bool = False,
        host: str | None = None,
        sni: str | None = None,
        context: ssl.SSLContext | None = None,
        timeout: float = 20,
    ) -> Answer:
        """Make one request on a connection of its own.

        A `body` in parts is sent without its length; `http` asks port 80. A handshake that fails
        raises; a connection that is cut is `CUT`.
        """
        name = self.domain if host is None else host
        if http2:
            with self.connect(
                source=source, sni=sni, alpn=["h2"], context=context, timeout=timeout
            ) as secure:
                assert secure.selected_alpn_protocol() == "h2", "HTTP/2 was not negotiated"
                return Http2(secure, timeout).ask(method, path, name, headers, body)
        connection: socket.socket = (
            self.plain(80, source=source, timeout=timeout)
            if http
            else self.connect(source=source, sni=sni, context=context, timeout=timeout)
        )
        with connection:
            return read(send(connection, method, path, name, headers, body))

    @contextmanager
    def open(
        self,
        path: str,
        *,
        headers: Headers = (),
        source: str | None = None,
        timeout: float = 20,
    ) -> Iterator[HTTPResponse]:
        """Begin a GET over HTTP/1.1 whose answer is read while it comes."""
        with self.connect(source=source, timeout=timeout) as connection:
            answer = send(connection, "GET", path, self.domain, headers, None)
            answer.begin()
            yield answer

    # --------------------------------------------------------- an operator

    def slot(self) -> str:
        """The active slot."""
        link = self.machine.run(f"readlink /srv/{SLUG}/live/active.sock")
        return "green" if "green" in link else "blue"

    def workers(self) -> list[int]:
        """The processes of the active slot's workers."""
        return self.target.workers(self.slot())

    def access_lines(self) -> list[str]:
        """Every line of the proxy's access log, byte for byte: what is no UTF-8 is a surrogate."""
        if self.row.deployment == "docker":
            return self._lines(f"docker logs {SLUG}-proxy-1 2>/dev/null")
        return self._lines(f"cat /var/log/{self.row.proxy}/{SLUG}.log")

    def app_lines(self) -> list[str]:
        """Every line that the app has logged, likewise."""
        if self.row.deployment == "docker":
            one = f"{SLUG}-$slot-1"
            logged = (
                f"! docker inspect {one} >/dev/null 2>&1 || docker logs --timestamps {one} 2>&1"
            )
            # In the order in which both slots wrote them, so that new ones are the last.
            in_order = "LC_ALL=C sort --stable --key=1,1 | LC_ALL=C cut --delimiter=' ' --fields=2-"
            return self._lines(f"for slot in blue green; do {logged}; done | {in_order}")
        return self._lines(f"journalctl --identifier {SLUG} --output cat --all --no-pager")

    def _lines(self, command: str) -> list[str]:
        encoded = self.machine.run(f"({command}) | base64 --wrap=0")
        text = base64.b64decode(encoded).decode("utf-8", "surrogateescape")
        return text.split("\n")[:-1]


# ------------------------------------------------------------- how it comes up


def lacking(row: Row) -> list[str]:
    """What this host lacks for a site of this row."""
    found = [*machine.missing(), *authority.missing()]
    found += [program for program in PROGRAMS if shutil.which(program) is None]
    if row.suite == "bookworm" and interpreter() is None:
        found.append("a Python 3.13 below ~/.pyenv/versions")
    return found


@contextmanager
def site_of(row: Row, kind: type[Target], template: Path, folder: Path) -> Iterator[Site]:
    """Set up a server, make a release, and take both down again."""
    answers = {"database": row.database, "proxy": row.proxy, "cache": row.cache, "ci": "none"}
    project = EdgeProject(template, folder / "project", deployment=row.deployment, **answers)
    engine = row.deployment == "docker"
    python = interpreter() if row.suite == "bookworm" else None
    with ExitStack() as stack:
        place = stack.enter_context(
            Machine(row.suite, row.kind, python=python, domain=DOMAIN, engine=engine)
        )
        own = folder / place.name
        own.mkdir()
        acme = stack.enter_context(Authority(own, place.gateway, place.host, valid_s=86_400))
        place.put(acme.ca, CA)
        environment = {"ACME_DIRECTORY": acme.directory, "ACME_CA": CA, "DEPLOY_WATCH_S": "1"}
        operator = Operator(project, place, **environment)
        target = kind(row, place)
        operator.deploy("setup")
        operator.deploy("config", "APP_DOCS=true", *target.settings)
        project.release("first")
        operator.deploy("release")
        yield Site(row, project, place, target, operator, acme.ca, DOMAIN)


# ------------------------------------------------------------------ HTTP/1.1


def raw(part: str | bytes) -> bytes:
    """What is sent for a part of a request."""
    return part if isinstance(part, bytes) else part.encode("latin-1")


def send(
    connection: socket.socket,
    method: str,
    path: str,
    host: str,
    headers: Headers,
    body: bytes | Iterable[bytes] | None,
) -> HTTPResponse:
    """Send a request just as it is given; of one that is refused in the middle the rest stays."""
    lines = [raw(f"{method} {path} HTTP/1.1"), raw(f"Host: {host}"), b"Connection: close"]
    given = [(raw(name), raw(value)) for name, value in headers]
    if any(name.lower() == b"connection" for name, _ in given):
        lines.pop()
    lines += [b"%s: %s" % header for header in given]
    if isinstance(body, bytes):
        lines.append(b"Content-Length: %d" % len(body))
    elif body is not None:
        lines.append(b"Transfer-Encoding: chunked")
    with suppress(OSError):
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        if isinstance(body, bytes):
            connection.sendall(body)
        elif body is not None:
            for part in body:
                connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            connection.sendall(b"0\r\n\r\n")
    return HTTPResponse(connection, method=method)


def read(answer: HTTPResponse) -> Answer:
    """Read an answer to its end."""
    try:
        answer.begin()
    except (OSError, HTTPException):
        return CUT
    headers = tuple((name.lower(), value) for name, value in answer.getheaders())
    body, complete = b"", True
    try:
        body = answer.read()
    except (OSError, HTTPException) as error:
        body, complete = getattr(error, "partial", b""), False
    version = {10: "HTTP/1.0", 11: "HTTP/1.1"}[answer.version]
    return Answer(answer.status, headers, body, version, complete)


# -------------------------------------------------------------------- HTTP/2


class Http2:
    """One request on an HTTP/2 connection."""

    def __init__(self, connection: ssl.SSLSocket, timeout: float) -> None:
        self.connection, self.deadline = connection, time.monotonic() + timeout
        settings = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            # What is sent is to be sent as it is.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.state = h2.connection.H2Connection(settings)
        self.status, self.body = 0, b""
        self.headers: tuple[tuple[str, str], ...] = ()
        self.ended = self.complete = False

    def ask(
        self,
        method: str,
        path: str,
        host: str,
        headers: Headers,
        body: bytes | Iterable[bytes] | None,
    ) -> Answer:
        """Make the request; a header of the given name `:…` replaces the one that would be sent."""
        self.state.initiate_connection()
        self.state.increment_flow_control_window(1 << 24)
        head = {
            b":method": raw(method),
            b":scheme": b"https",
            b":authority": raw(host),
            b":path": raw(path),
        }
        given = [(raw(name), raw(value)) for name, value in headers]
        head.update((name, value) for name, value in given if name in head)
        rest = [(name, value) for name, value in given if name not in head]
        if isinstance(body, bytes):
            rest.append((b"content-length", b"%d" % len(body)))
        try:
            self.state.send_headers(1, [*head.items(), *rest], end_stream=body is None)
            self._flush()
            if body is not None:
                self._upload([body] if isinstance(body, bytes) else body)
            while not self.ended:
                self._receive()
        except (OSError, h2.exceptions.ProtocolError):
            self.complete = False
        if not self.status:
            return CUT
        return Answer(self.status, self.headers, self.body, "HTTP/2", self.complete)

    def _upload(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                if self.ended or self.status >= 400:
                    return
                room = min(
                    self.state.local_flow_control_window(1), self.state.max_outbound_frame_size
                )
                if room <= 0 or select.select([self.connection], [], [], 0)[0]:
                    self._receive()
                    continue
                self.state.send_data(1, bytes(rest[:room]))
                rest = rest[room:]
                self._flush()
        self.state.end_stream(1)
        self._flush()

    def _flush(self) -> None:
        self.connection.sendall(self.state.data_to_send())

    def _receive(self) -> None:
        self.connection.settimeout(max(0.01, self.deadline - time.monotonic()))
        received = self.connection.recv(1 << 16)
        if not received:
            raise ConnectionResetError
        for event in self.state.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived):
                found = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                self.status = int(dict(found)[":status"])
                self.headers = tuple(one for one in found if one[0] != ":status")
            elif isinstance(event, h2.events.DataReceived):
                self.body += event.data
                self.state.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended = self.complete = True
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                self.ended = True
        with suppress(OSError):
            self._flush()
