"""Reading a stream in order: an ephemeral push consumer that is made anew behind each gap (rule U2)."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime

from msgspec import structs

from nebengjek.bus.deliveries import Delivery, PullStatus
from nebengjek.bus.errors import ApiError, BusError, Disconnected
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.pushing import PushSource
from nebengjek.bus.specs import Ack, ConsumerSpec, Deliver, Push
from nebengjek.errors import Unavailable

HEARTBEAT = 5.0
PAUSE = 0.25
"""Seconds between two tries to go on."""
BATCH = 256


async def read_in_order(
    broker: Broker,
    stream: str,
    filters: tuple[str, ...],
    *,
    since: int | datetime | Deliver,
    headers_only: bool,
    until_drained: bool,
) -> AsyncGenerator[StoredMessage, None]:
    """``Broker.ordered``, over any broker that pushes."""
    push = Push(subject=broker.new_inbox(), heartbeat=HEARTBEAT, flow_control=True)
    spec = ConsumerSpec(
        filters=filters, ack=Ack.NONE, max_deliver=1, headers_only=headers_only, in_memory=True, push=push
    )
    spec = await _beginning(broker, stream, spec, since)
    last = 0
    begun = False
    while True:
        try:
            reading = await _Reading.begin(broker, stream, spec, after=last)
        except Unavailable:
            if not begun:
                raise
            await broker.wait_connected()
            await broker.sleep(PAUSE)
            continue
        begun = True
        try:
            if until_drained and not reading.pending:
                return
            while (deliveries := await reading.next()) is not None:
                for delivery in deliveries:
                    last = delivery.seq
                    yield _stored(delivery)
                    if until_drained and not delivery.pending:
                        return
        finally:
            await reading.end()
        if broker.status is ConnectionStatus.CLOSED:
            raise Disconnected("bus")
        await broker.wait_connected()


async def _beginning(broker: Broker, stream: str, spec: ConsumerSpec, since: int | datetime | Deliver) -> ConsumerSpec:
    if isinstance(since, datetime):
        return structs.replace(spec, deliver=Deliver.BY_TIME, start_time=since)
    if since is Deliver.NEW:
        # By its number: made anew before anything came, it must not begin later than it did at first.
        since = (await broker.stream_info(stream)).last_seq + 1
    if isinstance(since, int):
        return structs.replace(spec, deliver=Deliver.BY_SEQ, start_seq=since)
    if since in (Deliver.ALL, Deliver.LAST):
        return structs.replace(spec, deliver=since)
    raise ValueError(f"an ordered reader cannot begin at {since}")


def _stored(delivery: Delivery) -> StoredMessage:
    return StoredMessage(
        stream=delivery.stream,
        seq=delivery.seq,
        subject=delivery.subject,
        headers=dict(delivery.headers),
        data=delivery.data,
        time=delivery.time,
    )


class _Reading:
    """One consumer, for as long as nothing is missing."""

    def __init__(self, broker: Broker, stream: str, name: str, pending: int, source: PushSource) -> None:
        self.pending = pending
        """What there was to read at the beginning."""
        self._broker = broker
        self._stream = stream
        self._name = name
        self._source = source
        self._came = 0
        self._broken = False

    @classmethod
    async def begin(cls, broker: Broker, stream: str, spec: ConsumerSpec, *, after: int) -> "_Reading":
        if after:
            if (await broker.stream_info(stream)).last_seq < after:
                raise ApiError(10059, f"{stream} began anew", status=404)
            spec = structs.replace(spec, deliver=Deliver.BY_SEQ, start_seq=after + 1, start_time=None)
        info = await broker.create_consumer(stream, spec)
        source = await broker.push(stream, info.name)
        assert isinstance(source, PushSource)
        return cls(broker, stream, info.name, info.num_pending, source)

    async def next(self) -> list[Delivery] | None:
        """What comes next, maybe nothing yet; None when something is missing, or might be."""
        if self._broken:
            return None
        batch = await self._source.next(BATCH)
        for index, delivery in enumerate(batch.messages):
            if delivery.consumer_seq != self._came + 1:
                self._broken = True
                return batch.messages[:index]
            self._came += 1
        if self._source.is_closed:
            # Not by us: the broker is being closed.
            raise Disconnected("bus")
        if batch.status is PullStatus.TIMEOUT:
            # The server is there: does it know of more than we do?
            self._broken = self._source.last_told > self._came
        else:
            self._broken = batch.status is not PullStatus.COMPLETE
        return batch.messages

    async def end(self) -> None:
        await self._source.close()
        # Without a connection it goes by itself, soon: nobody listens to it.
        with suppress(BusError, Unavailable):
            await self._broker.delete_consumer(self._stream, self._name)
