"""A connection to a nats-server that is made again for ever, and what it says of itself."""

import asyncio
import random
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import structlog
from nats import errors as nats_errors

from nebengjek.bus.interface import Broker, Connection, ConnectionStatus
from nebengjek.bus.jetstream.access import Access, Violation, violation
from nebengjek.bus.jetstream.client import ReadingClient
from nebengjek.errors import Misconfigured
from nebengjek.tasks import cancelled

CLOSE_PATIENCE = 2.0
SAME_TRY = 0.25
SLOW_SAID = 10.0

log = structlog.stdlib.get_logger("nebengjek.bus")


class NatsConnection(Broker):
    """The part of the broker that connects, and says once what is wrong."""

    def __init__(
        self, access: Access, *, name: str, connect_timeout: float, reconnect_wait: float, ping_interval: float
    ) -> None:
        self._servers = access.servers
        self._options: dict[str, Any] = {
            **access.options,
            "name": name,
            "connect_timeout": connect_timeout,
            "max_reconnect_attempts": -1,
            "ping_interval": ping_interval,
            "max_outstanding_pings": 2,
        }
        self._tls_only = access.tls_only
        self._connect_timeout = connect_timeout
        self._reconnect_wait = reconnect_wait
        self._status = ConnectionStatus.CONNECTING
        self._client: ReadingClient | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._complaints: set[str] = set()
        self._slow: dict[str, float] = {}
        """Until when nothing more is said about subscriptions that lose messages."""
        self._error: str | None = None
        self._changed = 0.0
        self._broke = self._failed = float("-inf")
        self._times_up = 0
        self._traffic = [0, 0, 0, 0]
        """Messages and bytes, out and in, of the clients before the present one."""
        self._status_listeners: list[Callable[[ConnectionStatus], None]] = []

    @abstractmethod
    async def _attach(self, client: ReadingClient) -> None:
        """Make all subscriptions on a client that has just connected."""

    @abstractmethod
    def _refused(self, refused: Violation) -> None:
        """The server said no."""

    @abstractmethod
    def _nothing_comes(self) -> None:
        """The connection broke, or is closed: tell all who wait."""

    async def connect(self) -> None:
        if self._keeper is not None:
            return
        self._changed = asyncio.get_running_loop().time()
        self._keeper = asyncio.create_task(self._keep_connected(), name="nats connection")
        tried = asyncio.create_task(self._tried.wait())
        await asyncio.wait((self._keeper, tried), timeout=self._connect_timeout, return_when=asyncio.FIRST_COMPLETED)
        tried.cancel()
        if self._keeper.done():
            # Only a mistake of ours ends it, such as a malformed address.
            await self._keeper

    async def _keep_connected(self) -> None:
        while True:
            self._count_traffic()
            client = self._client = ReadingClient(tls_only=self._tls_only)
            closed = asyncio.Event()

            async def on_closed(closed: asyncio.Event = closed) -> None:
                closed.set()

            try:
                await client.connect(
                    list(self._servers),
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_connected,
                    closed_cb=on_closed,
                    reconnect_time_wait=self._pause(),  # type: ignore[arg-type] # annotated int, any number works
                    **self._options,
                )
            except Exception as error:
                # The network's failures are tried again in there: this is a setting that cannot work. Whoever
                # called connect hears of it; afterwards nobody would, and it may be mended on the other side.
                self._client = None
                if not self._tried.is_set():
                    raise Misconfigured(f"NATS at {self.where}: {type(error).__name__}: {error}") from error
                log.error("nats.not_connected", exc_info=error)
                await asyncio.sleep(self._pause())
                continue
            await self._attach(client)
            if client.is_connected:
                await self._on_connected()
            await closed.wait()
            # The client gave up, as it does when the server refuses us: begin anew.
            self._lost()
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Never more than ``reconnect_wait`` with the handshake, so that loops go on that soon after the server."""
        return self._reconnect_wait * random.uniform(0.5, 0.9)

    async def _on_connected(self) -> None:
        self._become(ConnectionStatus.UP)

    async def _on_disconnected(self) -> None:
        self._lost()
        now = asyncio.get_running_loop().time()
        soon, self._broke = now - self._broke < self._reconnect_wait, now
        if soon and self._client is not None:
            # It broke as soon as it stood, as it does when the server does not like our certificate.
            self._client.hold_off()

    def _lost(self) -> None:
        if self._status is ConnectionStatus.UP:
            self._become(ConnectionStatus.DOWN)
        self._nothing_comes()

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats_errors.SlowConsumerError):
            # Called for each message that is lost; to say it for each would make it worse.
            subject, now = error.sub.subject, asyncio.get_running_loop().time()
            if now >= self._slow.get(subject, 0.0):
                self._slow[subject] = now + SLOW_SAID
                log.error("subscription.slow", subject=subject, lost="what comes until it has caught up")
            return
        if (refused := violation(error)) is not None:
            self._refused(refused)
            return
        self._tried.set()
        if self._client is not None:
            self._client.options["reconnect_time_wait"] = self._pause()
        if self._status is ConnectionStatus.UP:
            return
        # Once until it is back: a refused password or name must be seen, sixty tries a minute need not.
        text = f"{type(error).__name__}: {error}"
        now = asyncio.get_running_loop().time()
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            if now - self._failed < SAME_TRY:
                # The reason was said already; this is the end of that connection.
                return
            # Its word that it does not know us is lost when it hangs up before it has read all of ours.
            text += " (a server hangs up on whom it does not let in)"
        self._error, self._failed = text, now
        if text not in self._complaints:
            self._complaints.add(text)
            log.warning("nats.away", where=self.where, error=text)

    def _become(self, status: ConnectionStatus) -> None:
        if self._status in (status, ConnectionStatus.CLOSED):
            return
        before, self._status = self._status, status
        now = asyncio.get_running_loop().time()
        lasted, self._changed = now - self._changed, now
        if status is ConnectionStatus.UP:
            self._tried.set()
            self._complaints.clear()
            self._error = None
            self._times_up += 1
            if self._client is not None:
                self._client.broken_by = None
            self._up.set()
            again = {"away": round(lasted, 3)} if before is ConnectionStatus.DOWN else {}
            log.info("nats.connected", where=self.where, times=self._times_up, **again)
        else:
            self._up.clear()
            if status is ConnectionStatus.DOWN:
                said = self._client.broken_by or self._client.last_error if self._client is not None else None
                self._error = f"{type(said).__name__}: {said}" if said is not None else "the connection broke"
                log.warning("nats.disconnected", where=self.where, lasted=round(lasted, 3), error=self._error)
        for listener in self._status_listeners:
            listener(status)

    async def close(self) -> None:
        if self._status is ConnectionStatus.CLOSED:
            return
        client = self._client
        if client is not None and client.is_connected:
            try:
                await client.flush(timeout=CLOSE_PATIENCE)  # type: ignore[arg-type] # annotated int, any number works
            except nats_errors.Error:
                log.debug("nats.not_flushed")
                client.abort()
        self._become(ConnectionStatus.CLOSED)
        if self._keeper is not None:
            await cancelled(self._keeper)
        if client is not None:
            await client.close()
        self._nothing_comes()

    @property
    def status(self) -> ConnectionStatus:
        return self._status

    @property
    def where(self) -> str:
        client = self._client
        present = client.connected_url.geturl() if client is not None and client.connected_url else ""
        return present or ", ".join(self._servers)

    def connection(self) -> Connection:
        traffic = [old + new for old, new in zip(self._traffic, self._present_traffic(), strict=True)]
        return Connection(
            status=self._status,
            where=self.where,
            since=self.monotonic() - self._changed if self._keeper is not None else 0.0,
            reconnects=max(0, self._times_up - 1),
            error=self._error,
            sent=traffic[0],
            sent_bytes=traffic[1],
            received=traffic[2],
            received_bytes=traffic[3],
        )

    def _present_traffic(self) -> list[int]:
        stats = self._client.stats if self._client is not None else {}
        return [stats.get(name, 0) for name in ("out_msgs", "out_bytes", "in_msgs", "in_bytes")]

    def _count_traffic(self) -> None:
        self._traffic = [old + new for old, new in zip(self._traffic, self._present_traffic(), strict=True)]
        self._client = None

    async def wait_connected(self) -> None:
        await self._up.wait()

    def on_status(self, listener: Callable[[ConnectionStatus], None]) -> None:
        self._status_listeners.append(listener)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
