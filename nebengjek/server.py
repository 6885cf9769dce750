"""The one process: uvicorn around the application, with the lock, the ports and the signals of a good citizen."""

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from nebengjek.app import App
from nebengjek.settings import Settings
from nebengjek.sockets import PhoneProtocol

KEEP_ALIVE = 75
"""Seconds for which an idle HTTP connection is kept: longer than balancers and clients keep theirs (nginx 60), because
a request that is on its way while we close is lost, and who sent a POST may not send it again."""


class Server(uvicorn.Server):
    """uvicorn's server that tells where it listens. SIGTERM: sockets close with 1012, handlers end, the bus drains."""

    def __init__(self, app: App, *, on_ready: Callable[[str], None] | None = None) -> None:
        web = app.settings.web
        self.app = app
        self.url = ""
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                app.litestar,
                host=web.host,
                port=web.port,
                loop="none",
                http="httptools",
                ws=PhoneProtocol,
                ws_max_size=web.max_frame,
                ws_ping_interval=web.ping_interval,
                ws_ping_timeout=None,
                ws_per_message_deflate=False,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                # Whose word on the phone's address is believed: a limit per address is no limit otherwise.
                proxy_headers=bool(web.trusted_proxies),
                forwarded_allow_ips=list(web.trusted_proxies),
                timeout_graceful_shutdown=int(app.settings.nats.drain_timeout),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises what ``App.start`` raises."""
        await self.app.start()
        await super().startup(sockets=sockets)
        if self.should_exit:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if self._on_ready is not None:
            self._on_ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what would go on for ever, then waits for the rest."""
        self.app.closing()
        await super().shutdown(sockets=sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            # A clean end is no death by signal: uvicorn would raise it again.
            self._captured_signals.clear()


def serve(
    settings: Settings,
    *,
    modules: Sequence[str] | None = None,
    announce: Callable[[App], None] | None = None,
    on_ready: Callable[[str], None] | None = None,
    sockets: list[socket.socket] | None = None,
) -> int:
    """Run until a signal; 0 after a clean end, 1 when it could not start.

    ``announce``: told of the parts before anything starts; ``on_ready``: told the URL; ``sockets``: listening ones
    that several processes share, instead of the settings' host and port. Raises what ``App.start`` raises.
    """

    async def run() -> int:
        app = App(settings, running=modules)
        if announce is not None:
            announce(app)
        server = Server(app, on_ready=on_ready)
        # What the start has made stays: the collector need not look at it again, nor at every 700th message.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        await server.serve(sockets=sockets)
        return 0 if server.started else 1

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (the extra ``speed``), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
