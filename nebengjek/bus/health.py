"""What the bus says of itself: its connection, its streams, and whether each consumer still moves."""

from datetime import datetime

from msgspec import Struct

from nebengjek.bus.errors import ApiError, NotPermitted
from nebengjek.bus.interface import Connection, ConnectionStatus
from nebengjek.bus.runner import PULL_EXPIRES, Runner
from nebengjek.bus.specs import StreamInfo
from nebengjek.errors import Unavailable


class ConsumerHealth(Struct, frozen=True, kw_only=True):
    """``moving``: attached, its last pull younger than three times a pull's expiry, no breaker open.

    ``event``: the type that it hears. ``lagging``: more is waiting than ``MessageBus`` was told to worry about.
    """

    stream: str
    consumer: str
    event: str = ""
    lag: int
    ack_pending: int
    redelivered: int
    last_pull_age: float
    running: int
    blocked_by: str | None
    moving: bool
    lagging: bool = False
    paused_until: datetime | None = None


class StreamHealth(Struct, frozen=True, kw_only=True):
    """How full a stream of ours is; bytes, ``max_bytes`` -1 = no limit."""

    stream: str
    storage: str
    messages: int
    bytes: int
    max_bytes: int
    consumers: int


class Health(Struct, frozen=True, kw_only=True):
    status: ConnectionStatus
    where: str
    connection: Connection
    established: bool
    consumers: list[ConsumerHealth]
    breakers: dict[str, str]
    outbox_backlog: int
    dead_letters: int
    orphans: list[str]
    """``stream/consumer`` of durables that no module wants: on an interest stream they keep every message."""
    streams: list[StreamHealth] = []
    refusal: str | None = None
    """What the server would not let us make at the start; said until somebody mends it."""

    @property
    def problem(self) -> str | None:
        """Why the bus does not work, for people."""
        if self.established and self.status is ConnectionStatus.UP:
            return None
        if self.status is ConnectionStatus.UP:
            return self.refusal or "streams and consumers are not made yet"
        why = f": {self.connection.error}" if self.connection.error else ""
        return f"{self.status.value} for {self.connection.since:.0f} s{why}"

    @property
    def ready(self) -> bool:
        return (
            self.status is ConnectionStatus.UP
            and self.established
            and all(consumer.moving for consumer in self.consumers)
        )


def stream_health(info: StreamInfo) -> StreamHealth:
    return StreamHealth(
        stream=info.spec.name,
        storage=info.spec.storage.value,
        messages=info.messages,
        bytes=info.bytes,
        max_bytes=info.spec.max_bytes,
        consumers=info.consumers,
    )


async def consumer_health(runner: Runner, *, reachable: bool, lag_alarm: int) -> ConsumerHealth:
    """``reachable``: the server can be asked. ``lag_alarm``: lag above which it is called lagging, 0 = never."""
    lag = ack_pending = redelivered = 0
    paused_until = None
    attached = reachable
    if attached:
        try:
            info = await runner.info()
            lag, ack_pending, redelivered = info.num_pending, info.num_ack_pending, info.num_redelivered
            paused_until = info.paused_until
        except (ApiError, NotPermitted, Unavailable):
            attached = False
    age = runner.idle_for
    return ConsumerHealth(
        stream=runner.stream,
        consumer=runner.consumer,
        event=runner.event_type,
        lag=lag,
        ack_pending=ack_pending,
        redelivered=redelivered,
        last_pull_age=age,
        running=runner.running,
        blocked_by=runner.blocked_by,
        moving=attached and (age < 3 * PULL_EXPIRES or runner.running > 0) and runner.blocked_by is None,
        lagging=0 < lag_alarm < lag,
        paused_until=paused_until,
    )
