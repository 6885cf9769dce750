"""The listening side of a push consumer: written once, over either broker's core messages (rule U1)."""

import asyncio
from collections import deque
from collections.abc import Callable

from nebengjek.bus.deliveries import Batch, Consumption, Delivery, PullStatus
from nebengjek.bus.errors import ApiError
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.specs import Ack, ConsumerInfo, Push
from nebengjek.bus.wire_delivery import ACK_PREFIX, Line, Listener, Message, WireDelivery
from nebengjek.errors import Unavailable

BOUND_ELSEWHERE = 10013
REBIND_PATIENCE = (0.02, 0.05, 0.1, 0.2)
"""Seconds between looks at a consumer that is still taken: the server learns of a listener's end after we do."""


class _FlowControl(str):
    """Where the server is told that we came as far as this."""

    __slots__ = ()


class PushSource(Consumption):
    """What a push consumer delivered and nobody took yet, in order.

    It is bounded by the server: by ``max_ack_pending``, or with flow control, which is answered when what came before
    it was handed out.
    """

    def __init__(
        self, broker: Broker, line: Line, info: ConsumerInfo, push: Push, closed: Callable[["PushSource"], None]
    ) -> None:
        self._broker = broker
        self._line = line
        self._stream = info.stream
        self._name = info.name
        self._gives_back = info.spec.ack is not Ack.NONE
        self._push = push
        self._on_close = closed
        self._buffer: deque[WireDelivery | _FlowControl] = deque()
        self._status: PullStatus | None = None
        self._wake: asyncio.Future[None] | None = None
        self._heard = broker.monotonic()
        self._listener: Listener | None = None
        self._watch: asyncio.Task[None] | None = None
        self.last_told = 0
        """The last consumer sequence there is, as the last heartbeat said."""

    async def open(self) -> None:
        self._listener = await self._line.attend(self._push.subject, self._push.group, self._received)
        if self._push.heartbeat:
            self._watch = asyncio.create_task(self._watch_silence(), name=f"push {self._name}")

    async def next(self, limit: int) -> Batch:
        while True:
            messages = await self._take(limit)
            if messages:
                return Batch(messages, PullStatus.COMPLETE)
            if self.is_closed:
                return Batch([], PullStatus.DISCONNECTED)
            if self._status is not None:
                status, self._status = self._status, None
                if status is PullStatus.SILENT and await self._is_gone():
                    status = PullStatus.NO_CONSUMER
                return Batch([], status)
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    async def _take(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        while self._buffer:
            first = self._buffer[0]
            if isinstance(first, _FlowControl):
                self._buffer.popleft()
                await self._line.send(first, b"")
            elif len(taken) < limit:
                self._buffer.popleft()
                taken.append(first)
            else:
                break
        return taken

    async def _is_gone(self) -> bool:
        try:
            await self._broker.consumer_info(self._stream, self._name)
        except ApiError as error:
            if error.status != 404:
                raise
            return True
        except Unavailable:
            return False
        return False

    def _received(self, message: Message) -> None:
        self._heard = self._broker.monotonic()
        reply = message.reply or ""
        if reply.startswith(ACK_PREFIX):
            self._buffer.append(WireDelivery(self._line, message))
        else:
            headers = message.headers or {}
            asked = reply or headers.get("Nats-Consumer-Stalled")
            if asked and _FlowControl(asked) not in self._buffer:
                self._buffer.append(_FlowControl(asked))
            if (last := headers.get("Nats-Last-Consumer")) is not None:
                self.last_told = int(last)
                self._status = self._status or PullStatus.TIMEOUT
        self._rouse()

    async def _watch_silence(self) -> None:
        while True:
            await self._broker.sleep(self._push.heartbeat)
            silent = self._broker.monotonic() - self._heard > 2 * self._push.heartbeat
            if silent and self._broker.status is ConnectionStatus.UP:
                self._end(PullStatus.SILENT)

    def lost(self) -> None:
        """The connection broke; the subscription returns with it."""
        self._end(PullStatus.DISCONNECTED)

    def _end(self, status: PullStatus) -> None:
        self._heard = self._broker.monotonic()
        self._status = status
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._on_close(self)
        self._rouse()
        if self._watch is not None:
            self._watch.cancel()
        if self._listener is not None:
            await self._listener.drain()
        while self._buffer:
            left = self._buffer.popleft()
            if self._gives_back and isinstance(left, WireDelivery):
                await left.nak()

    @property
    def last_pull(self) -> float:
        return self._heard


async def open_source(
    broker: Broker, line: Line, stream: str, consumer: str, closed: Callable[[PushSource], None]
) -> PushSource:
    """Listen to what ``consumer`` delivers. Raises as ``Broker.push``."""
    info = await broker.consumer_info(stream, consumer)
    push = info.spec.push
    if push is None:
        raise ValueError(f"{consumer} is no push consumer: it is pulled from")
    for pause in REBIND_PATIENCE:
        if not info.bound or push.group is not None:
            break
        await broker.sleep(pause)
        info = await broker.consumer_info(stream, consumer)
    else:
        raise ApiError(BOUND_ELSEWHERE, f"somebody listens to {consumer} already")
    source = PushSource(broker, line, info, push, closed)
    await source.open()
    return source
