"""The gunicorn worker: uvicorn's, with an honest start and an honest end."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from app import levels, start

if TYPE_CHECKING:
    from app.health import Readiness

log = structlog.get_logger(__name__)

HEARTBEAT_S = 1.0
# gunicorn's graceful_timeout is this many seconds longer than the worker's own limit for open requests.
STOP_MARGIN_S = 5


class AppServer(Server):
    """uvicorn's server inside a worker: says that it drains, and closes the lifespan whatever ends it."""

    def __init__(self, config: Config, readiness: "Readiness") -> None:
        """Serve `config`; `readiness` is told when draining begins."""
        super().__init__(config)
        self.readiness = readiness

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle what gunicorn's master sends. uvicorn would die by the signal afterwards; this exits with 0."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Drain on SIGTERM; on SIGINT and SIGQUIT cut open requests, but still close the lifespan."""
        self.readiness.drain()
        if sig != signal.SIGTERM:
            self.config.timeout_graceful_shutdown = 0
        self.should_exit = True


class AppWorker(UvicornWorker):
    """Tells the service manager when it can serve, keeps its heartbeat while it drains, and never outlives its master."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        # One that fails is an error, not a service without it.
        "lifespan": "on",
        # Front writes a better access line.
        "access_log": False,
        # app.middleware reads them more carefully.
        "proxy_headers": False,
        "server_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Give open requests a little less time than gunicorn gives this worker."""
        super().__init__(*args, **kwargs)
        self.config.timeout_graceful_shutdown = max(1, self.cfg.graceful_timeout - STOP_MARGIN_S)
        self.config.callback_notify = None
        # Of the sockets' own folder, where only this service and root may write.
        self.level_file = levels.file_beside(self.cfg.bind[0])

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = AppServer(self.config, self.wsgi.state.readiness)
        heart = asyncio.create_task(self._beat(server))
        # The master passes on what `deploy/deploy.sh log-level` sends.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, levels.take, self.level_file)
        levels.take(self.level_file)
        try:
            await server.serve(sockets=self.sockets)
        finally:
            heart.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _beat(self, server: AppServer) -> None:
        told = False
        while True:
            self.notify()
            if server.started and not told:
                told = True
                start.succeed()
                tell_supervisor(f"READY=1\nSTATUS=worker {os.getpid()} serves")
            if os.getppid() != self.ppid and not server.should_exit:
                log.error("master_died", worker=os.getpid())
                server.handle_exit(signal.SIGTERM, None)
            await asyncio.sleep(HEARTBEAT_S if told else 0.05)


def tell_supervisor(message: str) -> None:
    """Send `message` to the service manager, as sd_notify(3) does, where one listens."""
    address = os.environ.get("SUPERVISOR_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as supervisor:
        supervisor.sendto(message.encode(), address)
