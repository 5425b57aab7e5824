"""Run a command beside a service that ends when the command does."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

# The shorter of the limits of Linux (107) and macOS (103).
LONGEST_SOCKET_PATH = 103


class ServiceError(Exception):
    """A service cannot start; the text is one line that names the mend."""


def execute(command: list[str], variable: str, service: Callable[[], AbstractContextManager[str]]) -> None:
    """Become `command`, with `variable` set to the address of `service` unless it is set already.

    The service lives in a process apart, so signals, terminal and exit code are the command's own.
    """
    if not command:
        sys.exit(f"Usage: python -m scripts.NAME COMMAND ..., to run COMMAND with {variable} set")
    # An interrupt while the service starts ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not os.environ.get(variable):
        os.environ[variable] = start_apart(variable, service)
    # Python ignores SIGPIPE; the command shall not.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the command is the developer's own
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


def start_apart(variable: str, service: Callable[[], AbstractContextManager[str]]) -> str:
    """Start `service` in a process of its own and return its address; it ends when this process has ended."""
    read_address, write_address = os.pipe()
    wait_for_end, alive = os.pipe()
    if (child := os.fork()) == 0:
        # Out of the terminal's reach, and no child of the command.
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        os.close(alive)
        try:
            with service() as address:
                os.write(write_address, address.encode())
                os.close(write_address)
                os.read(wait_for_end, 1)
        except ServiceError as error:
            sys.exit(str(error))
        except OSError as error:
            sys.exit(f"{error}: set {variable} to use another one")
        sys.exit()
    os.waitpid(child, 0)
    os.close(write_address)
    with os.fdopen(read_address) as pipe:
        address = pipe.read()
    if not address:
        sys.exit(1)
    # Whatever the command leaves running keeps the service, too.
    os.set_inheritable(alive, True)
    return address


def socket_folder(folder: Path, name: str) -> Path:
    """Return where a socket called `name` goes: to `folder`, or elsewhere if its path is too long or odd."""
    # A comma would separate two addresses.
    if len(os.fsencode(folder / name)) <= LONGEST_SOCKET_PATH and "," not in str(folder):
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path("/tmp", f"socket-{digest}")  # noqa: S108 - make_private looks whose it is


def make_private(folder: Path) -> None:
    """Make a folder that nobody else may enter.

    Raises:
        ServiceError: it exists and somebody else may.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ServiceError(f"{folder} is open to other users: remove it")
