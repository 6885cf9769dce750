"""A subscription that stays over the connection's end: it is made again on the next one."""

import asyncio
from collections.abc import Callable

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as NatsSubscription

from nebengjek.bus.errors import NotPermitted
from nebengjek.bus.interface import Subscription
from nebengjek.bus.jetstream.link import Received
from nebengjek.bus.wire_delivery import Listener

DRAIN_PATIENCE = 2.0

log = structlog.stdlib.get_logger("nebengjek.bus")


class Listening(Listener, Subscription):
    """One subscription of ours, on whichever client is the present one.

    ``pending``: messages that may wait to be taken; what comes then is lost. ``over``: called when it ends.
    """

    def __init__(
        self, subject: str, received: Received, queue: str, pending: int, over: Callable[["Listening"], None]
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.refused: NotPermitted | None = None
        self._received = received
        self._pending = pending
        self._over = over
        self._client: Client | None = None
        self._there: NatsSubscription | None = None

    async def attach(self, client: Client) -> None:
        if self._client is not client:
            self._client = client
            self.refused = None
            self._there = await client.subscribe(
                self.subject, queue=self.queue, cb=self._received, pending_msgs_limit=self._pending
            )

    async def stop(self) -> None:
        self._over(self)
        there, self._there = self._there, None
        if there is not None and self._client is not None and not self._client.is_closed:
            await there.unsubscribe()

    async def drain(self) -> None:
        self._over(self)
        there, self._there = self._there, None
        if there is None or self._client is None or self._client.is_closed:
            return
        if not self._client.is_connected:
            await there.unsubscribe()
            return
        try:
            async with asyncio.timeout(DRAIN_PATIENCE):
                await there.drain()  # type: ignore[no-untyped-call]
        except (TimeoutError, nats_errors.Error):
            # The connection broke meanwhile: there is nothing more to receive on it.
            log.debug("nats.not_drained", subject=self.subject)

    async def unsubscribe(self) -> None:
        await self.stop()
