"""Ask the running service, as a proxy would, whether it is ready (`python -m scripts.healthcheck`): 0 only if it is.

It needs nothing but the interpreter, for it starts every few seconds beside the workers.
"""

import os
import socket
import sys
import time

# Longer than APP_READY_TIMEOUT_S, shorter than the supervisor waits for an answer.
TIMEOUT_S = 4.0
LIMIT_BYTES = 4096
REQUEST = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def main() -> int:
    """Return the exit status; the reason for any but 0 is one line on stdout."""
    bind = os.environ.get("SERVER_BIND") or "unix:app.sock"
    try:
        answer = ask(bind, time.monotonic() + TIMEOUT_S)
    except (OSError, ValueError) as error:
        sys.stdout.write(f"{bind}: {error or type(error).__name__}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].split()
    if status[:1] == [b"HTTP/1.1"] and status[1:2] == [b"200"]:
        return 0
    line = b" ".join([*status, *body.split()]).decode("ascii", "backslashreplace")
    sys.stdout.write(f"{bind}: {line or 'no answer'}\n")
    return 1


def ask(bind: str, deadline: float) -> bytes:
    """Return what comes back, or its beginning."""
    answer = b""
    with connected(bind) as connection:
        connection.sendall(REQUEST)
        while len(answer) < LIMIT_BYTES:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left)
            if not (part := connection.recv(LIMIT_BYTES)):
                break
            answer += part
    return answer


def connected(bind: str) -> socket.socket:
    """Return a connection to where the service listens."""
    if bind.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(bind.removeprefix("unix:"))
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = bind.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
