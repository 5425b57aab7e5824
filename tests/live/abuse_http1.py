"""Abuse that fits into one HTTP/1.1 connection, byte for byte."""

import re
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tests.live.edge_routes import EDGE
from tests.live.site import Site

# A request that hides in another; whoever sees two of one has been taken in.
PLANTED = "/planted"
# How long an answer may take, and how long a connection is listened to after one.
PATIENCE_S = 30
QUIET_S = 5

STATUS = re.compile(rb"(?:^|[\n}>])HTTP/1\.[01] (\d{3})[ \r]")
LOCATION = re.compile(rb"\nlocation: *([^\r\n]*)", re.IGNORECASE)
# What ends in a line or a terminal that it does not belong to.
CONTROLS = {"CR": b"\r", "LF": b"\n", "ESC": b"\x1b", "a null byte": b"\0"}
# What is valid in HTTP, and has to be kept apart by whoever writes it down.
FOREIGN = {"U+2028": "\u2028".encode(), "invalid UTF-8": b"\xff\xfe\xc3("}


def head(domain: str, *lines: bytes, first: bytes = b"") -> bytes:
    """A request's head with the right Host; its end is part of it."""
    first = first or f"POST {EDGE}/upload HTTP/1.1".encode()
    return b"\r\n".join([first, f"Host: {domain}".encode(), *lines, b"", b""])


def get(domain: str, target: bytes, *lines: bytes) -> bytes:
    """A whole request without a body, the last on its connection."""
    return head(domain, *lines, b"Connection: close", first=b"GET " + target + b" HTTP/1.1")


def planted(domain: str) -> bytes:
    """The request that hides in another's body."""
    return get(domain, PLANTED.encode())


def chunked(content: bytes) -> bytes:
    """A body in one chunk."""
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)


def smuggling(domain: str) -> dict[str, list[bytes]]:
    """Requests whose length proxy and app could see differently."""
    hidden = planted(domain)
    # Read by its chunks the body is empty, by its length the second request is part of it.
    behind = b"0\r\n\r\n" + hidden
    length = b"Content-Length: %d" % len(behind)

    def coded(*lines: bytes) -> bytes:
        return head(domain, length, *lines) + behind

    def sized(*values: bytes) -> bytes:
        lines = [b"Content-Length: " + value for value in values]
        return head(domain, *lines) + b"12345" + hidden

    # Read by its length it ends after a chunk's size, by its chunks the second request is in it.
    within = chunked(hidden)
    first_line = within.index(b"\n") + 1
    te_cl = head(domain, b"Content-Length: %d" % first_line, b"Transfer-Encoding: chunked") + within
    whole = b"%d" % (5 + len(hidden))
    te = b"Transfer-Encoding: "
    end = b"\r\nConnection: close\r\n\r\n"
    chunks = head(domain, te + b"chunked", b"Connection: close")
    return {
        "Content-Length and Transfer-Encoding": [coded(te + b"chunked"), te_cl],
        "Transfer-Encoding in HTTP/1.0": [
            head(domain, te + b"chunked", length, first=b"POST /edge/upload HTTP/1.0") + behind
        ],
        "Content-Length twice, the same": [sized(b"5", b"5")],
        "Content-Length twice, different": [sized(b"5", whole), sized(whole, b"5")],
        "Content-Length as a list": [sized(b"5, 5"), sized(b"5," + whole)],
        "Content-Length with a sign, a base or a unit": [
            sized(b"+5"),
            sized(b"-5"),
            sized(b"0x5"),
            sized(b"5b"),
            sized(b"5 5"),
            sized(b"5.0"),
        ],
        "Content-Length empty": [sized(b"")],
        "Content-Length beyond 64 bits": [sized(b"18446744073709551621"), sized(b"9" * 400)],
        "an unknown Transfer-Encoding": [
            coded(te + b"xchunked"),
            coded(te + b"identity"),
            coded(te + b'"chunked"'),
            coded(te + b"chunked;q=1"),
            coded(te + b"cow"),
        ],
        "several Transfer-Encodings": [
            coded(te + b"chunked, identity"),
            coded(te + b"identity, chunked"),
            coded(te + b"chunked", te + b"identity"),
            coded(te + b"chunked", te + b"chunked"),
        ],
        "Transfer-Encoding behind a control character": [
            coded(te + b"\x0bchunked"),
            coded(te + b"chunked\x0c"),
            coded(b"Transfer-Encoding:\x00chunked"),
        ],
        "Transfer-Encoding with an underscore": [
            head(domain, b"Content-Length: 5", b"Transfer_Encoding: chunked", b"Connection: close")
            + b"12345"
        ],
        "a space before the colon": [
            coded(b"Transfer-Encoding : chunked"),
            head(domain, b"Content-Length : 5") + b"12345" + hidden,
        ],
        "a folded line": [
            coded(b"Transfer-Encoding:\r\n chunked"),
            coded(b"X-Folded: a\r\n Transfer-Encoding: chunked"),
        ],
        "a first header with a space before it": [
            b"POST /edge/upload HTTP/1.1\r\n "
            + te
            + b"chunked\r\nHost: "
            + domain.encode()
            + b"\r\n"
            + length
            + b"\r\n\r\n"
            + behind
        ],
        "lines that end with LF alone": [
            f"GET {EDGE}/see HTTP/1.1\nHost: {domain}\nConnection: close\n\n".encode()
        ],
        "lines that end with CR alone": [
            f"GET {EDGE}/see HTTP/1.1\rHost: {domain}\rConnection: close\r\r".encode(),
            get(domain, b"/edge/see", b"X-Odd: a\rX-Even: b"),
        ],
        "a chunk whose size is no number": [
            chunks + b"0x5\r\n12345\r\n0\r\n\r\n",
            chunks + b"-1\r\n12345\r\n0\r\n\r\n",
            chunks + b"+5\r\n12345\r\n0\r\n\r\n",
            chunks + b"\r\n12345\r\n0\r\n\r\n",
        ],
        "a chunk whose size is beyond 64 bits": [
            chunks + b"10000000000000005\r\n12345\r\n0\r\n\r\n",
            chunks + b"f" * 40 + b"\r\n12345\r\n0\r\n\r\n",
        ],
        "a chunk longer than its size": [chunks + b"3\r\n12345\r\n0\r\n\r\n"],
        "a chunk with an extension of 100 kB": [
            chunks + b"5;" + b"a" * 100_000 + b"\r\n12345\r\n0\r\n\r\n"
        ],
        "chunks of one byte with extensions, 10,000": [
            chunks + (b"1;" + b"a" * 60 + b"\r\nx\r\n") * 10_000 + b"0\r\n\r\n"
        ],
        "a trailer that says what a header may": [
            chunks + b"5\r\n12345\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nContent-Length: 9" + end
        ],
        "Upgrade: h2c": [
            head(
                domain,
                b"Connection: Upgrade, HTTP2-Settings",
                b"Upgrade: h2c",
                b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                first=f"GET {EDGE}/see HTTP/1.1".encode(),
            ),
        ],
        "Upgrade: websocket that the app refuses": [
            head(
                domain,
                b"Connection: Upgrade",
                b"Upgrade: websocket",
                b"Sec-WebSocket-Version: 777",
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                first=f"GET {EDGE}/see HTTP/1.1".encode(),
            )
        ],
        "HTTP/2 without having agreed on it": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)],
        "HTTP/0.9": [b"GET /planted\r\n", b"GET /planted\r\n\r\n"],
        "another version of HTTP": [
            head(domain, b"Connection: close", first=b"GET /edge/see HTTP/" + version)
            for version in (b"1.2", b"2.0", b"9.9", b"1", b"1.1.1")
        ],
        "spaces where there is one": [
            head(domain, b"Connection: close", first=b"GET  /edge/see HTTP/1.1"),
            head(domain, b"Connection: close", first=b"GET /edge/see  HTTP/1.1"),
            head(domain, b"Connection: close", first=b"GET\t/edge/see\tHTTP/1.1"),
        ],
        "a space in the path": [get(domain, b"/edge/see a"), get(domain, b"/edge/see HTTP/1.1 x")],
        "a header without a colon or a name": [
            get(domain, b"/edge/see", b"nothing"),
            get(domain, b"/edge/see", b": nothing"),
            get(domain, b"/edge/see", b"X Y: nothing"),
        ],
        "noise instead of a request": [
            b"\x00\x01\x02\x03\xff\xfe" * 50 + b"\r\n\r\n",
            b"{}\r\n\r\n",
        ],
        "Connection names the proxy's own headers": [
            head(
                domain,
                b"Connection: close, X-Forwarded-For, X-Forwarded-Proto, X-Request-ID, Host",
                first=f"GET {EDGE}/see HTTP/1.1".encode(),
            )
        ],
        "Expect with something unknown": [
            head(domain, b"Expect: a-miracle", b"Content-Length: 5", b"Connection: close")
            + b"12345"
        ],
    }


def hosts(domain: str) -> dict[str, list[bytes]]:
    """Requests that name another host, or none, or two."""
    name = domain.encode()
    target = f"{EDGE}/see".encode()

    def named(*values: bytes, target: bytes = target) -> bytes:
        lines = [b"Host: " + value for value in values]
        return b"\r\n".join([b"GET " + target + b" HTTP/1.1", *lines, b"Connection: close\r\n\r\n"])

    return {
        "no Host": [named()],
        "an empty Host": [named(b"")],
        "another Host": [named(b"other.test"), named(b"127.0.0.1"), named(b"[::1]")],
        "Host twice, the same": [named(name, name)],
        "Host twice, different": [named(name, b"other.test"), named(b"other.test", name)],
        "absolute form, another Host in the header": [
            named(b"other.test", target=b"https://" + name + target)
        ],
        "absolute form, another host in the target": [
            named(name, target=b"https://other.test" + target),
            named(name, target=b"http://other.test:80" + target),
        ],
        "absolute form with user and password": [
            named(name, target=b"https://user:pw@" + name + target)
        ],
        "another scheme in the target": [
            named(name, target=b"ftp://" + name + target),
            named(name, target=b"http://" + name + target),
        ],
        "Host with a port": [named(name + b":443"), named(name + b":8443")],
        "Host with a port that is none": [named(name + b":99999999"), named(name + b":a")],
        "Host with a user": [named(b"user@" + name), named(name + b"@other.test")],
        "Host with a dot behind it": [named(name + b".")],
        "Host in capital letters": [named(name.upper())],
        "Host with a path, a space or a comma": [
            named(name + b"/x"),
            named(name + b" other.test"),
            named(name + b",other.test"),
            named(name + b"\tother.test"),
            named(name + b"\\other.test"),
        ],
    }


def paths(domain: str) -> dict[str, list[bytes]]:
    """Requests for what is not to be had."""

    def each(*targets: bytes) -> list[bytes]:
        return [get(domain, target) for target in targets]

    return {
        "traversal out of the static files": each(
            b"/static/../../../../../../etc/passwd",
            b"/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            b"/static/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
            b"/static/..%5c..%5c..%5c..%5cetc%5cpasswd",
            b"/static/..\\..\\..\\..\\etc\\passwd",
            b"/static/%252e%252e/%252e%252e/%252e%252e/%252e%252e/etc/passwd",
            b"/static/%252e%252e%252f%252e%252e%252f%252e%252e%252fetc%252fpasswd",
            b"/static/....//....//....//....//etc/passwd",
            b"/static/..;/..;/..;/..;/etc/passwd",
            b"/static/%c0%ae%c0%ae/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
            b"/static/%u002e%u002e/%u002e%u002e/etc/passwd",
            b"/static/.%2e/.%2e/.%2e/.%2e/.%2e/etc/passwd",
            b"/static//etc/passwd",
            b"/static/%2fetc/passwd",
            b"/static../etc/passwd",
            b"/static/x/../../../../../../etc/passwd",
            b"/static/file:///etc/passwd",
        ),
        "`..` above the root": each(b"/../../etc/passwd", b"/..", b"/%2e%2e/%2e%2e/etc/passwd"),
        "a file that somebody left": each(
            b"/.env",
            b"/%2eenv",
            b"/x/%2egit/config",
            b"/static/%2Eenv",
            b"/static/x/.git/HEAD",
            b"//.env",
            b"/x/..;/.env",
            b"/app.py~",
            b"/app.py%7e",
            b"/app.BAK".replace(b"BAK", b"bak"),
            b"/.env?x",
            b"/.ENV",
        ),
        "metrics by a detour": each(
            b"/metrics",
            b"/%6detrics",
            b"//metrics",
            b"/./metrics",
            b"/x/../metrics",
            b"/x/%2e%2e/metrics",
            b"/metrics?x=1",
            b"/metrics%3fx",
            b"/metrics;x",
            b"/metrics/",
            b"/METRICS",
        ),
        "`/..;/`": each(b"/..;/edge/see", b"/x/..;/edge/see"),
        "`//`": each(b"//", b"//edge//see", b"/edge//see", b"///////////////"),
        "a redirect to another host": each(
            b"//other.test/edge/slash",
            b"//other.test/%2e%2e/edge/slash",
            b"/edge/slash?//other.test",
            b"/\\other.test/edge/slash",
        ),
        "a null byte": [
            *each(b"/edge/see%00", b"/edge/see%00.css", b"/static/%00"),
            get(domain, b"/edge/see\0"),
        ],
        "a percent sign that is not followed by a number": each(
            b"/edge/see%", b"/edge/see%zz", b"/%%30%30"
        ),
        "a fragment in the target": each(b"/edge/see#x"),
        "a target without a slash": each(b"edge/see", b"*", b"?x"),
        "a hundred ranges": [
            get(
                domain,
                b"/edge/text",
                b"Range: bytes=" + b",".join(b"0-%d" % number for number in range(100)),
            ),
            get(domain, b"/edge/text", b"Range: bytes=9-1"),
        ],
    }


def methods(domain: str) -> dict[str, list[bytes]]:
    """Requests by methods that nobody serves."""

    def by(method: bytes, target: bytes = b"/edge/see") -> bytes:
        return head(domain, b"Connection: close", first=method + b" " + target + b" HTTP/1.1")

    return {
        "TRACE": [by(b"TRACE")],
        "CONNECT": [
            by(b"CONNECT"),
            by(b"CONNECT", b"other.test:443"),
            by(b"CONNECT", domain.encode() + b":443"),
        ],
        "TRACK, DEBUG and others": [by(b"TRACK"), by(b"DEBUG"), by(b"PROPFIND"), by(b"PURGE")],
        "a made-up method": [by(b"FOO"), by(b"GETGET")],
        "a method in small letters": [by(b"get"), by(b"post")],
        "a method of 10 kB": [by(b"A" * 10_000)],
        "a method that is no word": [by(b"GE(T"), by(b"G\x00T"), by(b"<script>"), by(b"")],
    }


def sizes(domain: str) -> dict[str, list[bytes]]:
    """Requests that are too large."""
    long = b"a" * 40_000
    return {
        "a header of 40 kB": [get(domain, b"/edge/see", b"X-Long: " + long)],
        "a header's name of 40 kB": [get(domain, b"/edge/see", long + b": x")],
        "cookies of 40 kB": [get(domain, b"/edge/see", b"Cookie: a=" + long)],
        "10,000 headers": [
            get(domain, b"/edge/see", *(b"X-%d: %d" % (number, number) for number in range(10_000)))
        ],
        "a URL of 40 kB": [get(domain, b"/edge/see?" + long), get(domain, b"/" + long)],
        "a first line of 1 MB without an end": [b"GET /" + b"a" * 1_000_000],
        "a body of 11 MB, its length announced": [
            head(domain, b"Content-Length: 11000000") + bytes(11_000_000)
        ],
        "a body of 11 MB in chunks": [
            head(domain, b"Transfer-Encoding: chunked")
            + (b"10000\r\n" + bytes(65_536) + b"\r\n") * 168
            + b"0\r\n\r\n"
        ],
        "a body that is announced with 8 EB": [
            head(domain, b"Content-Length: 9000000000000000000") + b"12345"
        ],
    }


def injection(domain: str) -> dict[str, list[bytes]]:
    """Requests that would write a line of their own, or end one, into a log."""
    line = b'{"event":"forged","status":"200"}'
    found: dict[str, list[bytes]] = {}
    for name, character in {**CONTROLS, **FOREIGN}.items():
        odd = character + line.replace(b" ", b"")
        found[f"{name} in the path"] = [get(domain, b"/edge/" + odd)]
        found[f"{name} in the query"] = [get(domain, b"/edge/see?" + odd)]
        found[f"{name} in a header"] = [
            get(domain, b"/edge/see", b"User-Agent: a" + odd + b": b"),
            get(domain, b"/edge/see", b"Referer: a" + odd + b": b"),
            get(domain, b"/edge/see", b"X-Request-ID: abcdefgh" + odd + b": b"),
        ]
        found[f"{name} in Host"] = [
            b"GET /edge/see HTTP/1.1\r\nHost: "
            + domain.encode()
            + character
            + b"\r\nConnection: close\r\n\r\n"
        ]
        escaped = b"".join(b"%%%02x" % byte for byte in odd)
        found[f"{name} in the path, percent-encoded"] = [get(domain, b"/edge/" + escaped)]
    return found


def redirected(domain: str) -> dict[str, list[bytes]]:
    """What is asked of port 80, which sends everybody to the one name."""
    name = domain.encode()

    def named(host: bytes, target: bytes) -> bytes:
        return b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"

    return {
        "port 80: another Host": [
            named(b"other.test", b"/"),
            named(name + b".other.test", b"/"),
            named(b"127.0.0.1", b"/"),
        ],
        "port 80: a target that changes the redirect's host": [
            named(name, target)
            for target in (
                b"//other.test/",
                b"/%0d%0aLocation:%20https://other.test/",
                b"http://" + name + b"/x",
                b"/\\other.test",
                b"/.other.test",
                b"/@other.test",
            )
        ],
        "port 80: a target without a slash": [
            named(name, b"*"),
            named(name, b".other.test"),
            named(name, b"@other.test"),
            named(name, b":80@other.test"),
            named(name, b"http:@other.test/"),
            named(name, b"http:.other.test/"),
        ],
        "port 80: another host in the target": [named(name, b"http://other.test/")],
        "port 80: HTTP/2 without having agreed on it": [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
        ],
        "port 80: TLS": [bytes.fromhex("16030100050100000100") + b"\r\n\r\n"],
    }


def misled(site: Site, source: str, received: bytes) -> str:
    """What no answer may hold, whatever was sent; empty if it does not."""
    if b"root:x:0" in received:
        return "a file of the server"
    if b"\nset-cookie: forged" in received.lower():
        return "a forged header"
    for location in LOCATION.findall(received):
        if not location.startswith(f"https://{site.domain}/".encode()):
            return f"a redirect to {location.decode('latin-1')}"
    # What the app has seen.
    for client in re.findall(rb'"client": ?"([^"]*)"', received):
        if client.decode() != source:
            return f"another client: {client.decode('latin-1')}"
    for url in re.findall(rb'"(?:url|base_url|here)": ?"([^"]*)"', received):
        if not url.lower().startswith(f"https://{site.domain}/".encode()):
            return f"another URL: {url.decode('latin-1')}"
    return ""


def exchange(site: Site, sent: bytes, source: str, port: int = 443) -> str:
    """Send bytes on a connection of their own; return the statuses that came, or what else."""
    received, ending = b"", "held"
    connection: socket.socket = (
        site.connect(source=source) if port == 443 else site.plain(port, source=source)
    )
    with connection:
        connection.settimeout(PATIENCE_S)
        try:
            connection.sendall(sent)
        except OSError:
            # It may have answered before it has read all.
            ending = "cut"
        deadline = time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < deadline:
                part = connection.recv(1 << 16)
                if not part:
                    ending = "cut"
                    break
                received += part
                if STATUS.search(received):
                    connection.settimeout(QUIET_S)
        except TimeoutError:
            pass
        except (OSError, ssl.SSLError):
            ending = "cut"
    if wrong := misled(site, source, received):
        return wrong
    statuses = [status.decode() for status in STATUS.findall(received)]
    # An answer of version 0.9 is nothing but a page.
    statuses = statuses or re.findall(r'(?:<title>|"status":)(\d{3})', received.decode("latin-1"))
    return " then ".join(status for status in statuses if status != "100") or ending


def groups(domain: str) -> dict[str, Mapping[str, list[bytes]]]:
    """Every abuse of this kind, in the chapters of the table."""
    return {
        "Smuggling": smuggling(domain),
        "Hosts": hosts(domain),
        "Paths": paths(domain),
        "Methods": methods(domain),
        "Sizes": sizes(domain),
        "Injection": injection(domain),
        "Port 80": redirected(domain),
    }


def attack(site: Site, sources: list[str]) -> dict[str, str]:
    """Try everything; the outcome of each is what came of its variants, without repeating."""
    jobs: list[tuple[str, bytes, int]] = []
    for chapter, cases in groups(site.domain).items():
        port = 80 if chapter == "Port 80" else 443
        jobs += [(name, sent, port) for name, variants in cases.items() for sent in variants]

    def one(numbered: tuple[int, tuple[str, bytes, int]]) -> tuple[str, str]:
        number, (name, sent, port) = numbered
        return name, exchange(site, sent, sources[number % len(sources)], port)

    found: dict[str, list[str]] = {}
    with ThreadPoolExecutor(24) as pool:
        for name, outcome in pool.map(one, enumerate(jobs)):
            found.setdefault(name, []).append(outcome)
    return {name: ", ".join(sorted(set(outcomes))) for name, outcomes in found.items()}
