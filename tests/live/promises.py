"""What the edge promises to clients and to operators, whatever proxy it is."""

import gzip
import hashlib
import json
import os
import re
import shlex
import socket
import ssl
import statistics
import subprocess
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

from tests.browser import check_docs
from tests.live.edge_routes import EDGE
from tests.live.machine import CGROUPS, call, leader, until
from tests.live.project import SLUG
from tests.live.rehearsal import CA, SOAK
from tests.live.site import CUT, Answer, Site

HSTS = "max-age=63072000"
IMMUTABLE = "public, max-age=31536000, immutable"
PROBLEM = "application/problem+json"
# By default; `APP_BODY_LIMIT_BYTES` moves it.
BODY_LIMIT = 10_000_000
MORE_BODY_LIMIT = 12_000_000
BELOW = "/below"
SECRET = "s3cr3t-of-a-client"
# What a client claims to be: an address, a host and an id that must not be believed.
SPOOFED = "6.6.6.6"
EVIL = "evil.test"
# Of a network that may say so.
CLIENT = "203.0.113.7"


@dataclass
class Promises:
    """A site, and what was seen of it."""

    site: Site
    note: Callable[[str, object], None]
    # Request ids: those of every answer, and those that the app has answered.
    ids: list[str] = field(default_factory=list)
    app_ids: list[str] = field(default_factory=list)
    # Those in the app's log; a container that is made anew begins with an empty one.
    logged: set[str] = field(default_factory=set)

    @property
    def nginx(self) -> bool:
        """Whether it is nginx; else it is Caddy."""
        return self.site.row.proxy == "nginx"

    @property
    def docker(self) -> bool:
        """Whether it runs in containers."""
        return self.site.row.deployment == "docker"

    def ask(self, method: str = "GET", path: str = "/", **options: Any) -> Answer:
        """Make a request, of whose answer everything holds that is true of all answers."""
        answer = self.site.ask(method, path, **options)
        said = f"{method} {path[:200]}: {answer}"
        assert answer.complete, f"cut: {said}"
        assert answer.all("strict-transport-security") == [HSTS], said
        assert answer.all("x-content-type-options") == ["nosniff"], said
        (request_id,) = answer.all("x-request-id")
        assert re.fullmatch(r"[0-9a-f-]{32,36}", request_id), said
        server = answer.get("server")
        assert server in {"", "nginx", "Caddy"}, f"it tells its version: {said}"
        assert answer.all("x-powered-by") == [], said
        self.ids.append(request_id)
        # Whatever the app answers has this; no proxy adds it.
        if answer.all("referrer-policy"):
            self.app_ids.append(request_id)
        return answer

    def see(self, *, below: str = "", **options: Any) -> dict[str, Any]:
        """What the app sees of a request."""
        answer = self.ask("GET", f"{below}{EDGE}/see", **options)
        assert answer.status == 200, answer
        seen: dict[str, Any] = answer.json()
        return seen

    def told(self, source: str, *forwarded: str, http2: bool = False) -> str:
        """Who asks, as the app sees it, if `source` says that it asks for somebody else."""
        headers = [("x-forwarded-for", value) for value in forwarded or (CLIENT,)]
        seen = self.ask(
            "GET", f"{BELOW}{EDGE}/see", headers=headers, source=source, http2=http2
        ).json()
        (passed_on,) = [value for name, value in seen["headers"] if name == "x-forwarded-for"]
        assert passed_on == seen["client"], seen
        return str(seen["client"])

    def problem(self, status: int, method: str = "GET", path: str = "/", **options: Any) -> Answer:
        """Make a request that the proxy itself answers with a problem."""
        answer = self.ask(method, path, **options)
        assert answer.status == status, f"{status} was expected: {answer}"
        assert answer.get("content-type") == PROBLEM, answer
        assert answer.all("referrer-policy") == [], f"the app answered: {answer}"
        said = answer.json()
        assert (said["type"], said["status"]) == ("about:blank", status), answer
        assert said["title"], answer
        assert said["request_id"] == answer.get("x-request-id"), answer
        return answer

    def curl(self, path: str, *options: str, inside: bool = False) -> list[str]:
        """The command that asks with curl; `inside` is the machine's, which is a newer one."""
        site = self.site
        resolve = f"{site.domain}:443:{site.address}"
        begin = ["chroot", str(site.machine.root), "curl"] if inside else ["curl"]
        trusted = CA if inside else str(site.ca)
        quiet = ["--silent", "--show-error", "--no-buffer", "--max-time", "30", "--cacert", trusted]
        return [*begin, *quiet, "--resolve", resolve, *options, f"https://{site.domain}{path}"]

    def websocket(self, **headers: str) -> ClientConnection:
        """An open WebSocket; nobody on this side sends anything by itself."""
        return connect_websocket(
            f"wss://{self.site.domain}{EDGE}/ws",
            sock=self.site.plain(),
            ssl=self.site.context(),
            server_hostname=self.site.domain,
            additional_headers=headers,
            ping_interval=None,
        )


# --------------------------------------------------- names, schemes and TLS


def http_leads_to_https_by_the_configured_name(p: Promises) -> None:
    domain = p.site.domain
    for host in (domain, f"{domain}:80", domain.upper()):
        for method in ("GET", "POST"):
            spoofed = [("X-Forwarded-Host", EVIL), ("X-Forwarded-Proto", "https")]
            answer = p.site.ask(method, "/a/b?c=%20d", http=True, host=host, headers=spoofed)
            assert answer.status == 308, answer
            assert answer.get("location") == f"https://{domain}/a/b?c=%20d", answer
            # A browser would not believe it there.
            assert answer.all("strict-transport-security") == [], answer
    over_ipv6 = p.site.ask("GET", "/", http=True, source=p.site.clients6[0])
    assert over_ipv6.get("location") == f"https://{domain}/", over_ipv6


def no_other_site_answers(p: Promises) -> None:
    site = p.site
    for host in (EVIL, site.address, f"[{site.address6}]", f"www.{site.domain}"):
        answer = site.ask("GET", "/", http=True, host=host)
        assert answer == CUT, f"HTTP asked for {host}: {answer}"
        for http2 in (False, True):
            # It is no host of the site's, so there is nothing of the site's in the answer.
            answer = site.ask("GET", f"{EDGE}/see", host=host, http2=http2)
            assert answer.status == 421, answer
            assert site.domain.encode() not in answer.body, answer
    for sni in (EVIL, "", f"www.{site.domain}"):
        for source in (None, site.clients6[0]):
            try:
                site.ask("GET", f"{EDGE}/see", sni=sni, source=source)
            except (ssl.SSLError, ConnectionError):
                continue
            raise AssertionError(f"TLS asked for {sni!r} was agreed on")


def tls_is_1_3_or_1_2_and_nothing_older(p: Promises) -> None:
    site = p.site
    with site.connect() as connection:
        assert connection.version() == "TLSv1.3", connection.version()
    context = site.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with site.connect(context=context) as connection:
        cipher, version, _ = connection.cipher() or ("", "", 0)
        assert connection.version() == "TLSv1.2"
        assert re.fullmatch(r"ECDHE-ECDSA-(AES(128|256)-GCM-SHA\d+|CHACHA20-POLY1305)", cipher), (
            cipher,
            version,
        )
    for option in ("-tls1_1", "-tls1"):
        client = ["openssl", "s_client", "-connect", f"{site.address}:443", option]
        client += ["-servername", site.domain, "-cipher", "ALL:@SECLEVEL=0"]
        done = subprocess.run(client, input="", capture_output=True, text=True, timeout=30)
        assert "alert protocol version" in done.stderr, f"{option}: {done.stdout}{done.stderr}"


def http_2_is_offered_and_http_1_stays(p: Promises) -> None:
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1")):
        with p.site.connect(alpn=offered) as connection:
            assert connection.selected_alpn_protocol() == chosen
    assert p.see(http2=True) | {"headers": []} == p.see() | {"headers": []}


def http_3_is_spoken_by_caddy_alone(p: Promises) -> None:
    offered = p.ask("GET", f"{EDGE}/see").all("alt-svc")
    if p.nginx:
        assert offered == [], offered
        return
    assert [value.partition("=")[0] for value in offered] == ["h3"], offered
    assert '":443"' in offered[0], offered
    client = p.site.clients[1]
    asked = p.curl(
        f"{EDGE}/see", "--http3-only", "--interface", client, "-w", "\n%{http_version}", inside=True
    )
    *lines, version = call(*asked).splitlines()
    assert version == "3"
    seen = json.loads("".join(lines))
    assert (seen["client"], seen["scheme"]) == (client, "https"), seen


# ------------------------------------------------------- what the app sees


def the_app_sees_who_asks(p: Promises) -> None:
    site = p.site
    url = f"https://{site.domain}{EDGE}/see"
    for source in (*site.clients[:2], *site.clients6[:2]):
        for http2 in (False, True):
            seen = p.see(source=source, http2=http2)
            assert seen["client"] == source, seen
            assert seen["url"] == seen["here"] == url, seen
            assert seen["base_url"] == f"https://{site.domain}/", seen
    seen = p.see(host=f"{site.domain}:443")
    assert seen["here"] in {url, f"https://{site.domain}:443{EDGE}/see"}, seen


def identity(seen: dict[str, Any]) -> dict[str, Any]:
    """What no client can choose, and every header by which it could try."""
    names = ("client", "scheme", "url", "base_url", "here", "path")
    # The app reads none with an underscore.
    trying = [
        [name, value]
        for name, value in seen["headers"]
        if name.startswith(("x-forwarded", "forwarded", "x-real-ip", "host"))
    ]
    return {name: seen[name] for name in names} | {"headers": sorted(trying)}


CLAIMS = {
    "X-Forwarded-For": SPOOFED,
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": EVIL,
    "X-Forwarded-Port": "81",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Server": EVIL,
    "X-Real-IP": SPOOFED,
    "Forwarded": f"for={SPOOFED};host={EVIL};proto=http",
    "X-Request-ID": "chosen-by-a-client",
    "X-User-ID": "1",
    "X-Original-URL": "/metrics",
    "X-Rewrite-URL": "/metrics",
}


def nothing_that_a_client_claims_changes_what_the_app_sees(p: Promises) -> None:
    # Headers that mean nothing to the app are passed on like any other.
    meaningless = {"x-user-id", "x-original-url", "x-rewrite-url", "x-forwarded-server"}
    odd = "".join(letter.upper() if i % 2 else letter for i, letter in enumerate("abcdefghijkl"))
    assert odd == "aBcDeFgHiJkL"
    usual = identity(p.see())
    tried: list[tuple[list[tuple[str, str]], bool]] = []
    everything = list(CLAIMS.items())
    for http2 in (False, True):
        cases = [everything, everything * 2]
        # In HTTP/2 names are in lower case.
        if not http2:
            cases.append([(name.swapcase(), value) for name, value in everything])
        cases.append([(name.lower(), value) for name, value in everything])
        cases.append([(name.replace("-", "_"), value) for name, value in everything])
        cases.append([("X-Forwarded-For", f"{SPOOFED}, 127.0.0.1, ::1"), ("Forwarded", "for=_x")])
        # A hop-by-hop header that names what the proxy adds.
        if not http2:
            named = "close, X-Forwarded-For, X-Forwarded-Proto, X-Request-ID, X-Real-IP, Host"
            cases.append([("Connection", named)])
        tried += [(case, http2) for case in cases]
    for case, http2 in tried:
        given = [(name.lower() if http2 else name, value) for name, value in case]
        seen = p.see(headers=given, http2=http2)
        found = identity(seen)
        found["headers"] = [one for one in found["headers"] if one[0] not in meaningless]
        assert found == usual, f"{given}: {found}"
        if p.nginx:
            # Caddy passes them on, and the app reads none.
            assert not any("_" in name for name, _ in seen["headers"]), f"{given}: {seen}"
        ids = [value for name, value in seen["headers"] if name == "x-request-id"]
        assert ids == [p.ids[-1]] or (len(ids) == 1 and "chosen" not in ids[0]), f"{given}: {ids}"


def redirects_of_the_app_are_https_and_by_the_configured_name(p: Promises) -> None:
    claims = [
        ("X-Forwarded-Host", EVIL),
        ("X-Forwarded-Proto", "http"),
        ("Forwarded", "proto=http"),
    ]
    for path, leads in ((f"{EDGE}/redirect", f"{EDGE}/see"), (f"{EDGE}/slash", f"{EDGE}/slash/")):
        for http2 in (False, True):
            answer = p.ask("GET", path, headers=claims if not http2 else (), http2=http2)
            assert answer.status == 307, answer
            assert answer.get("location") == f"https://{p.site.domain}{leads}", answer


# ------------------------------------------------------------- what passes


def websockets_pass(p: Promises) -> None:
    with p.websocket() as socket:
        assert socket.response is not None
        assert socket.response.headers.get_all("strict-transport-security") == [HSTS]
        seen = json.loads(socket.recv(timeout=10))
        assert seen == {
            "client": p.site.machine.gateway,
            "url": f"wss://{p.site.domain}{EDGE}/ws",
        }, seen
        for text in ("hello", "ä" * 100_000, ""):
            socket.send(text)
            assert socket.recv(timeout=10) == text
    with p.websocket(**{"X-Forwarded-For": SPOOFED, "X-Forwarded-Proto": "http"}) as socket:
        seen = json.loads(socket.recv(timeout=10))
        assert seen["client"] == p.site.machine.gateway, seen
        assert seen["url"].startswith("wss://"), seen


def nothing_else_is_upgraded_to(p: Promises) -> None:
    for upgrade in ("h2c", "websocket, h2c", "TLS/1.2", "WebSocket2"):
        headers = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", upgrade)]
        headers.append(("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"))
        with p.site.open(f"{EDGE}/see", headers=headers) as answer:
            assert answer.status in {200, 400}, f"{upgrade}: {answer.status}"
            if answer.status == 200:
                seen = dict(
                    json.loads(answer.read(int(answer.headers["content-length"])))["headers"]
                )
                assert "upgrade" not in seen, seen
                assert seen.get("connection", "close") == "close", seen


def arrivals(command: Sequence[str]) -> list[tuple[float, bytes]]:
    """When what a command prints arrives, in seconds since it began."""
    started, found = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 1 << 20):
            found.append((time.monotonic() - started, part))
    assert process.returncode == 0, f"curl ended with {process.returncode}"
    return found


def events_come_one_by_one(p: Promises, version: str) -> None:
    # Somebody who takes compression has to wait no longer.
    for options in ([], ["--compressed"]):
        count, gap = 10, 0.3
        path = f"{EDGE}/events?count={count}&gap={gap}"
        came = arrivals(p.curl(path, version, *options))
        assert b"".join(part for _, part in came).count(b"data: ") == count
        spread = came[-1][0] - came[0][0]
        # On a busy machine two may come at once.
        assert spread > 0.6 * count * gap, f"they came within {spread:.1f} s: {came}"
        assert len(came) > count / 2, came


def events_come_one_by_one_over_http_1(p: Promises) -> None:
    events_come_one_by_one(p, "--http1.1")


def events_come_one_by_one_over_http_2(p: Promises) -> None:
    events_come_one_by_one(p, "--http2")


def a_download_arrives_while_it_is_made(p: Promises) -> None:
    for version in ("--http1.1", "--http2"):
        came = arrivals(p.curl(f"{EDGE}/download?parts=10&gap=0.3", version))
        assert sum(len(part) for _, part in came) == 1_000_000
        middle = next(at for at, _ in came if at > came[0][0] + 1)
        assert came[-1][0] - came[0][0] > 1.8, f"{version}: it came at once"
        assert middle < came[-1][0], f"{version}: nothing came in between"


def parts(size: int) -> Iterable[bytes]:
    """A body of this size, in parts."""
    for begin in range(0, size, 50_000):
        yield bytes(min(50_000, size - begin))


def bodies_pass_up_to_the_limit(p: Promises, limit: int = BODY_LIMIT, below: str = "") -> None:
    path = f"{below}{EDGE}/upload"
    source = p.site.clients[2]
    small, large = limit - 1_000_000, limit + 1_000_000
    for http2 in (False, True):
        for body in (bytes(small), parts(small)):
            answer = p.ask("POST", path, body=body, http2=http2, source=source, timeout=60)
            assert answer.status == 200, f"{http2}: {answer}"
            assert answer.json() == {"bytes": small}, answer
        for body in (bytes(large), parts(large)):
            answer = p.ask("POST", path, body=body, http2=http2, source=source, timeout=60)
            assert answer.status == 413, f"{http2}: {answer}"
            assert answer.get("content-type") == PROBLEM, answer
            assert answer.json()["status"] == 413, answer


def a_body_that_is_announced_as_too_large_is_refused_unsent(p: Promises) -> None:
    headers = [("Content-Length", str(BODY_LIMIT + 1)), ("Expect", "100-continue")]
    answer = p.ask("POST", f"{EDGE}/upload", headers=headers)
    assert answer.status == 413, answer
    assert answer.get("content-type") == PROBLEM, answer


def long_requests_end_within_the_limit(p: Promises) -> None:
    answer = p.ask("GET", f"{EDGE}/slow?seconds=45", timeout=60)
    assert (answer.status, answer.body) == (200, b"slow"), answer


def requests_beyond_the_limit_get_504(p: Promises) -> None:
    started = time.monotonic()
    p.problem(504, path=f"{EDGE}/slow?seconds=75", timeout=90)
    took = time.monotonic() - started
    assert 59 < took < 70, f"it took {took:.0f} s"


def a_websocket_stays_open_while_nobody_speaks(p: Promises) -> None:
    with p.websocket() as socket:
        socket.recv(timeout=10)
        # nginx has limits of a minute; a reload of Caddy, which follows, ends every WebSocket.
        time.sleep(63 if p.nginx else 8)
        socket.send("still there")
        assert socket.recv(timeout=10) == "still there"


def text_is_compressed_and_nothing_that_is_already(p: Promises) -> None:
    def encoding(path: str, accepted: str, http2: bool = False) -> str:
        plain = p.ask("GET", path)
        answer = p.ask("GET", path, headers=[("accept-encoding", accepted)], http2=http2)
        assert answer.status == 200, answer
        found = answer.get("content-encoding")
        body = answer.body
        if found == "gzip":
            body = gzip.decompress(body)
        if found in {"gzip", "zstd"}:
            assert "accept-encoding" in answer.get("vary").lower(), answer
            assert len(answer.body) < len(plain.body) / 2, answer
        if found != "zstd":
            assert body == plain.body, answer
        return found

    best = "gzip" if p.nginx else "zstd"
    text = ["text/plain", "text/css", "text/javascript", "text/html", "application/json"]
    text += ["application/problem%2Bjson", "application/javascript", "image/svg%2Bxml"]
    for kind in text:
        path = f"{EDGE}/text?kind={kind}"
        assert encoding(path, "gzip") == "gzip", kind
        assert encoding(path, "gzip, br, zstd", http2=True) == best, kind
        assert encoding(path, "br;q=1, identity") == "", kind
    already = (
        "image/png",
        "application/zip",
        "application/octet-stream",
        "font/woff2",
        "video/mp4",
    )
    for kind in (*already, "text/event-stream"):
        assert encoding(f"{EDGE}/text?kind={kind}", "gzip, zstd") == "", kind
    assert encoding(f"{EDGE}/text?size=900", "gzip, zstd") == "", "it is small"
    answer = p.ask("GET", f"{EDGE}/text?encoded=true", headers=[("Accept-Encoding", "gzip, zstd")])
    assert answer.all("content-encoding") == ["gzip"], answer
    assert zlib.decompress(answer.body, 31).startswith(b"The quick"), "it was compressed twice"


def conditional_requests_are_answered_with_304(p: Promises) -> None:
    for accepted in ("identity", "gzip"):
        for http2 in (False, True):
            headers = [("accept-encoding", accepted)]
            first = p.ask("GET", f"{EDGE}/tagged", headers=headers, http2=http2)
            assert first.status == 200, first
            assert first.get("content-encoding") == accepted.replace("identity", ""), first
            assert first.get("cache-control") == "private, no-cache", first
            headers.append(("if-none-match", first.get("etag")))
            again = p.ask("GET", f"{EDGE}/tagged", headers=headers, http2=http2)
            assert (again.status, again.body) == (304, b""), again
            assert again.get("etag").strip("W/") in {
                first.get("etag").strip("W/"),
                '"one-of-a-kind"',
            }
            other = p.ask("GET", f"{EDGE}/tagged", headers=[("if-none-match", '"other"')])
            assert other.status == 200, other


# ------------------------------------------------------------------- files


def published(p: Promises, name: str) -> str:
    """The address of a static file."""
    content = (p.site.project.folder / "static" / name).read_bytes()
    return f"/static/{hashlib.sha256(content).hexdigest()[:12]}/{name}"


def static_files_are_served_by_the_proxy_and_kept_for_ever(p: Promises) -> None:
    content = (p.site.project.folder / "static/site.css").read_bytes()
    path = published(p, "site.css")
    for http2 in (False, True):
        answer = p.ask("GET", path, http2=http2)
        assert (answer.status, answer.body) == (200, content), answer
        assert answer.get("cache-control") == IMMUTABLE, answer
        assert answer.get("content-type").split(";")[0] == "text/css", answer
        assert answer.all("referrer-policy") == [], f"the app answered: {answer}"
        headers = [("if-none-match", answer.get("etag"))]
        again = p.ask("GET", path, headers=headers, http2=http2)
        assert (again.status, again.body) == (304, b""), again
        assert again.get("cache-control") == IMMUTABLE, again
        small = p.ask("GET", path, headers=[("accept-encoding", "gzip")], http2=http2)
        assert gzip.decompress(small.body) == content, small
    picture = published(p, "pixel.png")
    answer = p.ask("GET", picture, headers=[("Accept-Encoding", "gzip, zstd")])
    assert answer.all("content-encoding") == [], answer
    assert answer.get("content-type") == "image/png", answer
    head = p.ask("HEAD", picture)
    assert (head.status, head.get("content-length"), head.body) == (200, "4000", b""), head
    lines = p.site.app_lines()
    served = [line for line in lines if f'"{path}"' in line or f'"{picture}"' in line]
    assert served == [], f"the app served it: {served[:2]}"


def what_was_not_published_is_the_apps_to_answer(p: Promises) -> None:
    for path in ("/static/0123456789ab/site.css", "/static/", "/static/none", "/nothing-there"):
        answer = p.ask("GET", path)
        assert answer.status == 404, answer
        assert answer.get("content-type") == PROBLEM, answer
        assert answer.all("referrer-policy"), f"the proxy answered: {answer}"


def files_that_a_person_or_an_editor_left_are_never_served(p: Promises) -> None:
    folder = published(p, "site.css").rpartition("/")[0]
    left = [".env", ".secret.css", "site.css~", "site.css.bak", "site.css.orig", "site.css.swp"]
    left += ["site.css.old", "site.css.save", ".hidden/site.css", "site.css.swo"]
    inside = f"/srv/{SLUG}/public{folder}"
    p.site.machine.run(
        f"cd {inside} && mkdir -p .hidden && for f in {' '.join(map(shlex.quote, left))};"
        " do echo left-behind >$f; chmod a+r $f; done; chmod a+rx .hidden"
    )
    others = ["/.env", "/.git/config", f"{EDGE}/.git/HEAD", "/a/.htpasswd", "/db.sql.bak"]
    others += ["/%2eenv", "/main.py~", f"{folder}/%2esecret.css", f"{folder}/site.css%7e"]
    for path in [*(f"{folder}/{name}" for name in left), *others]:
        p.problem(404, path=path)
    p.site.machine.run(f"cd {inside} && rm -r {' '.join(map(shlex.quote, left))} .hidden")
    answer = p.ask("GET", "/.well-known/security.txt")
    assert answer.status == 404, answer
    assert answer.all("referrer-policy"), f"the app may have what is well known: {answer}"


def metrics_are_for_their_collector_alone(p: Promises) -> None:
    for path in (
        "/metrics",
        "/metrics?x=1",
        "/%6detrics",
        "//metrics",
        "/./metrics",
        "/a/../metrics",
    ):
        for http2 in (False, True):
            answer = p.ask("GET", path, http2=http2)
            assert answer.status in {400, 404}, f"{path}: {answer}"
            assert b"secret_total" not in answer.body, f"{path}: {answer}"
    slot = p.site.slot()
    link = f"/srv/{SLUG}/live/active.sock" if not p.docker else f"/srv/{SLUG}/live/{slot}/app.sock"
    local = f"curl -s -H 'Host: {p.site.domain}' --unix-socket {link} http://localhost/metrics"
    assert "secret_total" in p.site.machine.run(local), "the collector finds none"


def metrics_are_shown_on_the_servers_own_loopback_address(p: Promises) -> None:
    slot, machine = p.site.slot(), p.site.machine
    ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:9464"
    assert p.ask("GET", f"{EDGE}/see").status == 200
    counted = machine.run("curl -sf http://127.0.0.1:9464/metrics")
    assert f'workers{{slot="{slot}"}}' in counted, counted[:2000]
    (build,) = re.findall(r"^app_build_info{(.*)} 1\.0$", counted, re.MULTILINE)
    assert f'slot="{slot}"' in build, build
    assert re.search(r'release="\d{8}-\d{6}-[0-9a-f]{8}"', build), build
    assert f'route="{EDGE}/see"' in counted, "what the proxy passed on is not counted"
    for path in ("/", "/health", "/api/v1/items", "/metrics/", "//metrics", f"{EDGE}/see"):
        assert machine.run(f"{ask}{path}") == "404", f"{path} is on the metrics' address"
    for address in (p.site.address, p.site.address6):
        with pytest.raises(OSError, match=r"refused|timed out|unreachable|No route"):
            socket.create_connection((address, 9464), timeout=3)
    inside = f"/srv/{SLUG}/live/{slot}" if p.docker else f"/run/{SLUG}-{slot}"
    modes = machine.run(f"stat -c '%a %n' {inside} {inside}/metrics.sock").split()[::2]
    assert modes == ["750", "770"], modes


# -------------------------------------------------------- answers and logs


def answers_of_the_app_say_how_a_browser_has_to_take_them(p: Promises) -> None:
    for path, status in ((f"{EDGE}/see", 200), ("/nothing", 404), (f"{EDGE}/crash", 500)):
        for http2 in (False, True):
            answer = p.ask("GET", path, http2=http2)
            assert answer.status == status, answer
            policy = answer.get("content-security-policy")
            assert policy == "default-src 'none'; frame-ancestors 'none'", answer
            assert answer.get("referrer-policy") == "no-referrer", answer
            assert answer.get("cache-control") == "no-store", answer
    # What a route sets itself is neither doubled nor lost.
    assert p.ask("GET", f"{EDGE}/policy").status == 200


def large_heads_are_refused(p: Promises) -> None:
    for http2 in (False, True):
        assert (
            p.ask("GET", f"{EDGE}/see", headers=[("x-a", "a" * 7_000)], http2=http2).status == 200
        )
        large = [("x-a", "a" * 9_000)]
        if p.nginx:
            p.problem(431, path=f"{EDGE}/see", headers=large)
            # nginx ends the connection of HTTP/2 without a word.
            if not http2:
                p.problem(414, path=f"{EDGE}/see?{'a' * 9_000}")
        else:
            assert p.ask("GET", f"{EDGE}/see", headers=large, http2=http2).status == 200
            assert p.ask("GET", f"{EDGE}/see?{'a' * 9_000}", http2=http2).status == 200
    refused = p.site.ask("GET", f"{EDGE}/see", headers=[("x-a", "a" * 30_000)])
    assert refused.status == 431, refused


def kept(p: Promises, control: str, below: str = "", cookie: str = "", **options: Any) -> bool:
    """Whether somebody who asks after another gets the same answer."""
    path = f"{below}{EDGE}/once?control={control}&case={len(p.ids)}&cookie={cookie}"
    first, second = (p.ask("GET", path, **options) for _ in range(2))
    assert first.status == second.status == 200, (first, second)
    assert first.get("x-request-id") != second.get("x-request-id"), "the id is another's"
    return first.body == second.body


def nobody_keeps_answers_unless_told_to(p: Promises) -> None:
    for control in ("public,max-age=60", "s-maxage=60"):
        assert not kept(p, control), control


def nginx_keeps_answers_that_are_public_where_it_is_told_to(p: Promises) -> None:
    if not p.nginx:
        return
    for control in ("public,max-age=60", "s-maxage=60", "max-age=60,public"):
        assert kept(p, control, BELOW), control
    others = (
        "",
        "max-age=60",
        "private,max-age=60",
        "no-store",
        "public,no-store",
        "public,no-cache",
    )
    for control in others:
        assert not kept(p, control, BELOW), control
    public = "public,max-age=60"
    assert not kept(p, public, BELOW, headers=[("Cookie", "session=1")])
    assert not kept(p, public, BELOW, headers=[("Authorization", "Bearer x")])
    assert not kept(p, public, BELOW, cookie="session=1"), "an answer with a cookie was kept"
    # What is kept for all is not given to one who has a session, and what he gets is not kept.
    path = f"{BELOW}{EDGE}/once?control={public}&case=mixed"
    first = p.ask("GET", path)
    with_session = p.ask("GET", path, headers=[("Cookie", "session=1")])
    assert with_session.body != first.body
    assert p.ask("GET", path).body == first.body


def burst(p: Promises, source: str, count: int) -> list[int]:
    """Send requests at once on one connection; return the status of each answer."""
    one = f"GET {EDGE}/status?code=200 HTTP/1.1\r\nHost: {p.site.domain}\r\n"
    request = f"{one}\r\n".encode() * (count - 1) + f"{one}Connection: close\r\n\r\n".encode()
    found = b""
    with p.site.connect(source=source, timeout=60) as connection:
        connection.sendall(request)
        while part := connection.recv(1 << 16):
            found += part
    heads = re.findall(rb"HTTP/1\.1 (\d+) [^\r]*\r\n((?:[^\r]+\r\n)+)", found)
    for status, head in heads:
        if status == b"429":
            assert re.search(rb"^retry-after: \d+\r$", head, re.I | re.M), head
            assert f"strict-transport-security: {HSTS}".encode() in head.lower(), head
            assert PROBLEM.encode() in head, head
    return [int(status) for status, _ in heads]


def whoever_asks_too_often_gets_429_and_nobody_else(p: Promises) -> None:
    greedy, other = p.site.clients[5], p.site.clients[6]
    enough, refused = threading.Event(), threading.Event()

    def ask_on() -> list[int]:
        found = []
        while not enough.is_set():
            found += burst(p, greedy, 300)
            if 429 in found:
                refused.set()
        return found

    with ThreadPoolExecutor() as aside:
        running = [aside.submit(ask_on) for _ in range(4)]
        try:
            for _ in range(40):
                answer = p.ask("GET", f"{EDGE}/see", source=other)
                assert answer.status == 200, f"another client: {answer}"
            # A slow machine may not get up to the rate at once.
            refused.wait(60)
        finally:
            enough.set()
    statuses = [status for one in running for status in one.result()]
    over = statuses.count(429)
    assert set(statuses) == {200, 429}, f"{set(statuses)}: {over} of {len(statuses)} refused"
    assert statuses.count(200) > 200, f"the burst is too small: {over} refused"

    def again() -> bool:
        return p.ask("GET", f"{EDGE}/see", source=greedy).status == 200

    until(again, "it may ask again", 5)
    p.note("requests of one client that were refused", round(over / len(statuses), 2))


# ------------------------------------------------------------ the operator


def the_proxys_own_check_has_nothing_to_say(p: Promises) -> None:
    site, run = p.site, p.site.machine.run
    inside = f"docker exec {SLUG}-proxy-1 " if p.docker else ""
    if p.nginx:
        main = " -c /etc/proxy/nginx.conf" if p.docker else ""
        said = run(f"{inside}nginx -t{main} 2>&1; {inside}nginx -v 2>&1")
        assert "test is successful" in said, said
        assert "[" not in said, f"nginx warns: {said}"
        p.note("version", said.splitlines()[-1].partition("/")[2])
        return
    files = [f"/etc/caddy/conf.d/{SLUG}.caddy", "/etc/caddy/Caddyfile"]
    as_caddy = inside or "runuser -u caddy -- "
    said = run(f"{as_caddy}caddy validate --config {files[1]} --adapter caddyfile 2>&1")
    assert "Valid configuration" in said, said
    # That one site is for port 80 alone is meant.
    warned = [
        line for line in said.splitlines() if '"warn"' in line and "only on the HTTP" not in line
    ]
    assert not warned, f"Caddy warns: {warned}"
    for file in files:
        text = run(f"{inside}cat {file}")
        assert run(f"{inside}caddy fmt {file}") == text, f"{file} is not as `caddy fmt` writes it"
        assert run(f"{inside}caddy fmt --diff {file} | grep '^[+-]'; true") == "", file
    p.note("version", run(f"{inside}caddy version").strip() or site.row.suite)


def setup_a_second_time_changes_nothing(p: Promises) -> None:
    before = p.site.target.fingerprint()
    said = p.site.operator.deploy("setup").out
    assert "nothing to change" in said, said
    assert p.site.target.fingerprint() == before, "setup changed something"


def the_docs_page_works_in_a_browser(p: Promises, below: str = "") -> None:
    # A browser is a lot of work: each proxy has it once with a path and once without.
    if p.docker != bool(below):
        return
    site = p.site
    for attempt in range(4):
        try:
            check_docs(
                f"https://{site.domain}{below}/docs",
                resolve=f"MAP {site.domain} {site.address}",
                # It does not know the authority.
                ignore_https_errors=True,
                within_s=45,
            )
        except AssertionError:
            # Chromium drops what it loads when another network comes up; a real fault stays.
            if attempt == 3:
                raise
        else:
            return


# ------------------------------------------- what needs the site to change


def stop_slot(p: Promises, slot: str) -> None:
    p.site.machine.run(
        f"docker stop {SLUG}-{slot}-1" if p.docker else f"systemctl stop {SLUG}@{slot}"
    )


def start_slot(p: Promises, slot: str) -> None:
    p.site.machine.run(
        f"docker start {SLUG}-{slot}-1" if p.docker else f"systemctl start {SLUG}@{slot}"
    )


def whoever_comes_while_nothing_serves_is_told_to_come_back(p: Promises) -> None:
    slot = p.site.slot()
    stop_slot(p, slot)
    for http2 in (False, True):
        for accepted in ("application/json", "*/*"):
            headers = [("accept", accepted)]
            answer = p.problem(503, path=f"{EDGE}/see", headers=headers, http2=http2)
            assert answer.get("retry-after") == "5", answer
        headers = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")]
        page = p.ask("GET", f"{EDGE}/see", headers=headers, http2=http2)
        assert (page.status, page.get("retry-after")) == (503, "5"), page
        assert page.get("content-type").split(";")[0] == "text/html", page
        assert b"<h1>" in page.body, page
        posted = p.problem(503, "POST", f"{EDGE}/upload", body=b"x" * 5000, http2=http2)
        assert posted.get("retry-after") == "5", posted
    assert p.ask("GET", published(p, "site.css")).status == 200, "static files need no app"
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    upgrade.append(("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="))
    p.problem(503, path=f"{EDGE}/ws", headers=upgrade)
    start_slot(p, slot)
    until(lambda: p.site.ask("GET", "/ready").status == 200, "the service is back", 60)


def a_request_whose_worker_dies_gets_502_and_no_invitation_to_repeat_it(p: Promises) -> None:
    count = len(p.site.workers())
    answer = p.problem(502, path=f"{BELOW}{EDGE}/die")
    assert answer.all("retry-after") == [], answer
    page = p.ask("GET", f"{BELOW}{EDGE}/die", headers=[("Accept", "text/html")])
    assert page.status == 502, page
    until(lambda: len(p.site.workers()) == count, "the worker was replaced", 30)


def one_setting_moves_the_largest_body(p: Promises) -> None:
    bodies_pass_up_to_the_limit(p, MORE_BODY_LIMIT, BELOW)


def everything_is_served_below_a_path(p: Promises) -> None:
    site = p.site
    base = f"https://{site.domain}{BELOW}"
    for http2 in (False, True):
        seen = p.ask("GET", f"{BELOW}{EDGE}/see", http2=http2).json()
        assert seen["here"] == seen["url"] == f"{base}{EDGE}/see", seen
        assert seen["base_url"] == f"{base}/", seen
    for path, leads in ((f"{EDGE}/redirect", f"{EDGE}/see"), (f"{EDGE}/slash", f"{EDGE}/slash/")):
        answer = p.ask("GET", f"{BELOW}{path}")
        assert answer.get("location") == f"{base}{leads}", answer
    document = p.ask("GET", f"{BELOW}/openapi.json").json()
    assert document["servers"] == [{"url": BELOW}], document.get("servers")
    answer = p.ask("GET", f"{BELOW}{published(p, 'site.css')}")
    assert answer.status == 200, answer
    assert answer.get("cache-control") == IMMUTABLE, answer


def the_docs_page_works_below_a_path(p: Promises) -> None:
    the_docs_page_works_in_a_browser(p, BELOW)


def setup_takes_effect_at_once(p: Promises) -> None:
    until(lambda: p.told(trusted_addresses(p)[0]) == CLIENT, "the network is trusted", 10)


def trusted_addresses(p: Promises) -> tuple[str, str]:
    """An IPv4 and an IPv6 address of the network that is trusted while that is tried."""
    return p.site.clients[8], p.site.clients6[8]


def a_trusted_network_says_who_asks_and_nobody_else(p: Promises) -> None:
    site = p.site
    client = CLIENT

    for trusted in trusted_addresses(p):
        for http2 in (False, True):
            assert p.told(trusted, client, http2=http2) == client
            assert p.told(trusted, "2001:db8::7", http2=http2) == "2001:db8::7"
            # Whoever asks the network writes what is left of what it adds.
            assert p.told(trusted, f"{SPOOFED}, {client}", http2=http2) == client
            assert p.see(source=trusted, below=BELOW, http2=http2)["client"] == trusted
        assert p.told(trusted, SPOOFED, client) == client
        for nonsense in ("unknown", "", "<script>"):
            assert p.told(trusted, nonsense) == trusted, nonsense
    for other in (site.clients[0], site.clients6[0], site.machine.gateway):
        assert p.told(other, client) == other
        assert p.told(other, f"{client}, {trusted_addresses(p)[0]}") == other
    lines = [json.loads(line) for line in site.access_lines()[-60:]]
    # Caddy's names the network's own; the app's line has the client.
    assert any(client in json.dumps(line) for line in lines) == p.nginx


OTHER_NAME = "other.live.test"
OTHER = {
    "nginx": 'server { listen 80; server_name @NAME@; access_log off; return 200 "other"; }\n',
    "caddy": 'http://@NAME@ {\n\trespond "other"\n}\n',
}
# Of somebody who had nginx before, and wants to welcome everybody.
DEFAULT = """\
server { listen 80 default_server; listen [::]:80 default_server; return 200 "welcome"; }
server {
    listen 443 ssl http2 default_server;
    listen [::]:443 ssl http2 default_server;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate     /etc/letsencrypt/live/@DOMAIN@/fullchain.pem;
    ssl_certificate_key /etc/letsencrypt/live/@DOMAIN@/privkey.pem;
    return 200 "welcome";
}
"""


def change(p: Promises, *settings: str) -> None:
    """Change the environment file and put it into effect."""
    p.site.operator.deploy("config", *settings)
    p.site.operator.deploy("restart")


def trust(p: Promises, *networks: str) -> None:
    """Say which networks are trusted; setup puts it into effect."""
    lines = "".join(f"{network}\n" for network in ("# a network of ours", *networks))
    (p.site.project.folder / "deploy/trusted-proxies.txt").write_text(lines)


def place_other_site(p: Promises) -> None:
    """Have a second site beside ours, in a file of its own."""
    folder = f"/srv/{SLUG}/proxy" if p.docker else f"/etc/{p.site.row.proxy}"
    suffix = "conf" if p.nginx else "caddy"
    other = OTHER[p.site.row.proxy].replace("@NAME@", OTHER_NAME)
    p.site.machine.run(f"cat >{folder}/conf.d/other.{suffix}", text=other)
    if p.nginx and not p.docker:
        text = DEFAULT.replace("@DOMAIN@", p.site.domain)
        p.site.machine.run(
            "rm /etc/nginx/conf.d/*-default-*.conf; cat >/etc/nginx/conf.d/own.conf", text=text
        )
    p.site.target.reload_proxy()


def another_site_and_its_default_stay(p: Promises) -> None:
    site = p.site

    def answers() -> None:
        other = site.ask("GET", "/", http=True, host=OTHER_NAME)
        assert (other.status, other.body) == (200, b"other"), other
        if p.nginx and not p.docker:
            for http in (False, True):
                sni = None if http else EVIL
                answer = site.ask("GET", "/", http=http, host=EVIL, sni=sni)
                assert (answer.status, answer.body) == (200, b"welcome"), answer
        assert p.ask("GET", f"{EDGE}/see").status == 200
        with site.connect() as connection:
            assert connection.version() == "TLSv1.3"

    until(lambda: site.ask("GET", "/", http=True, host=OTHER_NAME).status == 200, "it", 5)
    answers()
    said = site.operator.deploy("setup").out
    assert "default" not in said, f"setup brought a second default: {said}"
    answers()
    if p.nginx and not p.docker:
        site.machine.run("rm /etc/nginx/conf.d/own.conf")
        site.operator.deploy("setup")
    # A reload takes a moment to reach every worker.
    until(lambda: site.ask("GET", "/", host=EVIL).status == 421, "the default is ours again", 10)
    no_other_site_answers(p)


# --------------------------------------------------------------------- logs


def every_line_of_the_apps_log_is_one_object(p: Promises) -> None:
    for line in p.site.app_lines():
        one = json.loads(line)
        assert SECRET not in line, f"a client's secret was logged: {line}"
        if one.get("event") == "request":
            p.logged.add(one["request_id"])


def every_line_of_the_logs_is_one_object_and_names_the_same_requests(p: Promises) -> None:
    for secret in ("query", "header"):
        asked = {"query": f"?token={SECRET}", "header": ""}[secret]
        headers = [("Authorization", f"Bearer {SECRET}"), ("Cookie", f"session={SECRET}")]
        p.ask("GET", f"{EDGE}/see{asked}", headers=headers if secret == "header" else ())
    odd = [
        p.ask("GET", f"{EDGE}/see", host=host).get("x-request-id")
        for host in (p.site.domain.upper(), f"{p.site.domain}:443")
    ]
    agent = 'curl/1 "\\ <x> \xe4\xff'
    p.ask("GET", f"{EDGE}/see", headers=[("User-Agent", agent)], source=p.site.clients[7])
    last = p.ids[-1]
    time.sleep(1)
    lines = p.site.access_lines()
    if not p.nginx and not p.docker:
        # Caddy writes there who does not spell the name as it is in its configuration.
        aside = p.site.machine.run("journalctl --unit caddy --output cat --no-pager").splitlines()
        lines += [line for line in aside if any(request_id in line for request_id in odd)]
    found: dict[str, Any] = {}
    for line in lines:
        one = json.loads(line)
        assert isinstance(one, dict), line
        assert SECRET not in line, f"a client's secret was logged: {line}"
        if p.nginx:
            found[one["request_id"]] = one
        else:
            # Of who asks for no site there is none.
            for request_id in one["resp_headers"].get("X-Request-Id", []):
                found[request_id] = one
    missing = set(p.ids) - set(found)
    assert not missing, f"{len(missing)} of {len(p.ids)} are not in the access log: {missing}"
    every_line_of_the_apps_log_is_one_object(p)
    # What nginx had kept, the app was not asked for.
    again = {request_id for request_id, one in found.items() if one.get("cache") == "HIT"}
    missing = set(p.app_ids) - again - p.logged
    assert not missing, f"{len(missing)} of {len(p.app_ids)} are not in the app's log: {missing}"
    line = found[last]
    if p.nginx:
        assert (line["client"], line["method"]) == (p.site.clients[7], "GET"), line
        assert (line["path"], line["status"]) == (f"{EDGE}/see", "200"), line
        assert line["user_agent"] == "(not ASCII)", line
        assert line["protocol"] == "HTTP/1.1", line
        assert line["tls"] == "TLSv1.3", line
        assert float(line["duration_s"]) >= 0, line
    else:
        request = line["request"]
        assert (request["remote_ip"], request["method"]) == (p.site.clients[7], "GET"), line
        assert (request["uri"], line["status"]) == (f"{EDGE}/see", 200), line
        assert "headers" not in request, line
        assert line["duration"] >= 0, line
    p.note("requests found in both logs", len(set(p.ids)))


# ------------------------------------------------------------------ figures


# The client joins the machine's group, where there is one.
JOIN = (
    'for group in "$1"/cgroup.procs; do [ ! -e "$group" ] || echo $$ >"$group"; done; shift; "$@"'
)


def rate(p: Promises, *options: str) -> float:
    """Requests in a second, by h2load."""
    command = ["sh", "-c", JOIN, "join", str(CGROUPS / "cpu" / p.site.machine.name)]
    command += ["h2load", "--clients=16", "--threads=1", "--duration=1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", done.stdout)
    failed = re.search(r"requests: .* (\d+) succeeded, (\d+) failed", done.stdout)
    statuses = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout)
    assert found, done.stdout
    assert failed, done.stdout
    assert statuses, f"not every answer was good: {done.stdout}"
    return float(found[1])


def requests_per_second_are_not_much_fewer_than_without_a_proxy(p: Promises) -> None:
    """Side by side, in turns, by the same client; nothing but the ratio is told."""
    site = p.site
    folder = f"/srv/{SLUG}/live/{site.slot()}" if p.docker else f"/run/{SLUG}-{site.slot()}"
    # As this host sees the machine's files.
    socket = f"/proc/{leader(site.machine.folder)}/root{folder}"
    for number in range(20):
        item = json.dumps({"name": f"item {number}", "price_cents": number}).encode()
        headers = [("Content-Type", "application/json")]
        added = p.ask("POST", f"{BELOW}/api/v1/items", body=item, headers=headers)
        assert added.status in {201, 409}, added
    # What a service does.
    asked = {"20 items": "/api/v1/items?limit=20"}
    if SOAK:
        # What costs the app least.
        asked["next to nothing"] = f"{EDGE}/status?code=200"
    for what, route in asked.items():
        path = f"{BELOW}{route}"
        direct = ["--h1", f"--base-uri=unix:{socket}/app.sock", f"http://{site.domain}{path}"]
        proxied = [f"--connect-to={site.address}:443", f"https://{site.domain}:443{path}"]
        ways = {"HTTP/1.1": ["--h1", *proxied], "HTTP/2": ["--max-concurrent-streams=2", *proxied]}
        ratios: dict[str, list[float]] = {way: [] for way in ways}
        with site.machine.first():
            for _ in range(ROUNDS):
                alone = rate(p, *direct)
                for way, options in ways.items():
                    ratios[way].append(rate(p, *options) / alone)
        for way, found in ratios.items():
            ratio = statistics.median(found)
            p.note(f"requests for {what} by direct ones, {way}", round(ratio, 2))
            assert ratio > LEAST_RATIO, f"{what}, {way}: {found}"


ROUNDS = 5 if SOAK else 1
# Alone on a machine it is much more; here others work, too.
LEAST_RATIO = 0.15

# What takes a minute, and needs only to be waited for.
LONG: tuple[Callable[[Promises], None], ...] = (
    requests_beyond_the_limit_get_504,
    long_requests_end_within_the_limit,
    a_websocket_stays_open_while_nobody_speaks,
)
USUAL: tuple[Callable[[Promises], None], ...] = (
    the_docs_page_works_in_a_browser,
    bodies_pass_up_to_the_limit,
    events_come_one_by_one_over_http_1,
    events_come_one_by_one_over_http_2,
    a_download_arrives_while_it_is_made,
    text_is_compressed_and_nothing_that_is_already,
    nothing_that_a_client_claims_changes_what_the_app_sees,
    http_leads_to_https_by_the_configured_name,
    no_other_site_answers,
    tls_is_1_3_or_1_2_and_nothing_older,
    http_2_is_offered_and_http_1_stays,
    http_3_is_spoken_by_caddy_alone,
    the_app_sees_who_asks,
    redirects_of_the_app_are_https_and_by_the_configured_name,
    websockets_pass,
    nothing_else_is_upgraded_to,
    a_body_that_is_announced_as_too_large_is_refused_unsent,
    conditional_requests_are_answered_with_304,
    static_files_are_served_by_the_proxy_and_kept_for_ever,
    what_was_not_published_is_the_apps_to_answer,
    files_that_a_person_or_an_editor_left_are_never_served,
    metrics_are_for_their_collector_alone,
    metrics_are_shown_on_the_servers_own_loopback_address,
    answers_of_the_app_say_how_a_browser_has_to_take_them,
    large_heads_are_refused,
    nobody_keeps_answers_unless_told_to,
    the_proxys_own_check_has_nothing_to_say,
)
# With the settings that follow.
CHANGED: tuple[Callable[[Promises], None], ...] = (
    everything_is_served_below_a_path,
    the_docs_page_works_below_a_path,
    one_setting_moves_the_largest_body,
    a_trusted_network_says_who_asks_and_nobody_else,
    nginx_keeps_answers_that_are_public_where_it_is_told_to,
)
ALONE: tuple[Callable[[Promises], None], ...] = (
    requests_per_second_are_not_much_fewer_than_without_a_proxy,
    a_request_whose_worker_dies_gets_502_and_no_invitation_to_repeat_it,
    whoever_comes_while_nothing_serves_is_told_to_come_back,
)
LAST: tuple[Callable[[Promises], None], ...] = (
    another_site_and_its_default_stay,
    setup_a_second_time_changes_nothing,
    every_line_of_the_logs_is_one_object_and_names_the_same_requests,
)


def check(site: Site, note: Callable[[str, object], None]) -> None:
    """Check every promise, and say of each that is broken how it is."""
    p = Promises(site, note)
    broken: list[str] = []
    took: dict[str, float] = {}

    def keep(promise: Callable[[Promises], None]) -> None:
        started = time.monotonic()
        try:
            promise(p)
        except Exception:  # noqa: BLE001 - whatever it is, it is told
            broken.append(f"{promise.__name__}\n{traceback.format_exc()}")
        took[promise.__name__] = round(time.monotonic() - started, 1)

    started = time.monotonic()
    with ThreadPoolExecutor() as waiting, ThreadPoolExecutor(8) as some:
        long = [waiting.submit(keep, promise) for promise in LONG]
        done(some.submit(keep, promise) for promise in USUAL)
        note("promises: the usual ones, s", round(time.monotonic() - started))
        keep(whoever_asks_too_often_gets_429_and_nobody_else)
        keep(every_line_of_the_apps_log_is_one_object)
        lift_limits(p)
        # The release that serves the long ones stays up beside the next.
        change(
            p,
            f"APP_ROOT_PATH={BELOW}",
            f"APP_BODY_LIMIT_BYTES={MORE_BODY_LIMIT}",
            "APP_RATE_LIMIT=off",
            # So that it is the app that limits how many requests are answered.
            "WEB_CONCURRENCY=1",
        )
        trust(
            p, *(f"{address}/{32 if '.' in address else 128}" for address in trusted_addresses(p))
        )
        site.operator.deploy("setup")
        keep(setup_takes_effect_at_once)
        done(some.submit(keep, promise) for promise in CHANGED)
        for promise in ALONE:
            keep(promise)
        done(long)
    keep(every_line_of_the_apps_log_is_one_object)
    place_other_site(p)
    trust(p)
    lift_limits(p, back=True)
    usual = ["APP_ROOT_PATH=", f"APP_BODY_LIMIT_BYTES={BODY_LIMIT}", "APP_RATE_LIMIT="]
    change(p, *usual, "WEB_CONCURRENCY=2")
    for promise in LAST:
        keep(promise)
    note("promises, s", round(time.monotonic() - started))
    note("promises that took longest, s", sorted(took.items(), key=lambda one: -one[1])[:8])
    assert not broken, f"{len(broken)} promises are broken:\n\n" + "\n".join(broken)


def done(running: Iterable[Future[None]]) -> None:
    """Wait for all of them."""
    for one in list(running):
        one.result()


def lift_limits(p: Promises, *, back: bool = False) -> None:
    """Let a client of nginx ask as often as it can, and nginx keep answers, as an owner would."""
    path = p.site.project.folder / "deploy/nginx-https.conf"
    if p.nginx:
        edits = [("rate=100r/s", "rate=100000r/s"), ("burst=200 ", "burst=100000 ")]
        edits.append(("proxy_cache off;", f"proxy_cache {SLUG}_answers;"))
        text = path.read_text()
        for usual, lifted in edits:
            assert (lifted if back else usual) in text, f"{path.name}: {usual}"
            text = text.replace(lifted, usual) if back else text.replace(usual, lifted)
        path.write_text(text)
