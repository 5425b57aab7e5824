"""The proxies, with the lines of the project's own configurations that cost something."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.server import Server, serve

NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:18432;
        location / {{
            proxy_http_version 1.1;
            proxy_set_header Connection close;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Request-ID $request_id;
            proxy_pass http://{upstream};
        }}
    }}
}}
"""
CADDY = """\
{{
	admin off
	auto_https off
	log {{
		level ERROR
	}}
}}
http://127.0.0.1:18433 {{
	bind 127.0.0.1
	log {{
		output file {folder}/access.log
	}}
	reverse_proxy unix/{socket} {{
		header_up X-Forwarded-For {{remote_host}}
		header_up X-Request-ID {{http.request.uuid}}
		transport http {{
			keepalive off
			compression off
		}}
	}}
}}
"""


@contextmanager
def nginx(upstream: str, folder: Path) -> Iterator[Server]:
    """Put nginx in front of a server."""
    # Started by root, its worker would be another user, who may not open the socket.
    user = "user root;" if os.geteuid() == 0 else ""
    text = NGINX.format(folder=folder, upstream=upstream, user=user)
    (folder / "nginx.conf").write_text(text)
    command = ["/usr/sbin/nginx", "-c", str(folder / "nginx.conf")]
    with serve(command, "http://127.0.0.1:18432", folder, {}) as server:
        yield server


@contextmanager
def caddy(upstream: str, folder: Path) -> Iterator[Server]:
    """Put Caddy in front of a server."""
    socket = upstream.removeprefix("unix:")
    (folder / "Caddyfile").write_text(CADDY.format(folder=folder, socket=socket))
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    # One processor, as all others have.
    with serve(command, "http://127.0.0.1:18433", folder, {"GOMAXPROCS": "1"}) as server:
        yield server


PROXIES: dict[str, Callable[[str, Path], AbstractContextManager[Server]]] = {
    "nginx": nginx,
    "Caddy": caddy,
}
