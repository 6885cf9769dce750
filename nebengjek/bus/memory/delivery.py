"""A message of the memory broker: as its stream holds it, and as one of its consumers delivered it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct

from nebengjek.bus.deliveries import Delivery
from nebengjek.bus.errors import AckTimeout, AlreadySettled, Disconnected


class Stored(Struct):
    """A message in a stream. ``claims``: consumers that have not settled it; ``gone``: no longer in the stream."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    data: bytes
    time: float
    size: int
    claims: int
    gone: bool = False
    waiters: list[Callable[[], None]] | None = None

    def wake(self) -> None:
        """Tell those who wait for it that nobody has it in hand any more."""
        waiters, self.waiters = self.waiters, None
        for waiter in waiters or ():
            waiter()


class Connection(Protocol):
    """Whose delivery it is. While it is broken, settling counts as sent with its return; once closed, nothing does."""

    def connected(self) -> bool: ...

    def closed(self) -> bool: ...


class Holder(ABC):
    """The consumer that a delivery is settled at."""

    name: str
    stream_name: str

    @abstractmethod
    def ack(self, seq: int) -> None: ...

    @abstractmethod
    def ack_all(self, deliveries: Sequence["MemoryDelivery"]) -> None: ...

    @abstractmethod
    def nak(self, seq: int, delay: float) -> None: ...

    @abstractmethod
    def in_progress(self, seq: int) -> None: ...

    @abstractmethod
    def term(self, seq: int, reason: str, consumer_seq: int, deliveries: int) -> None: ...


class MemoryDelivery(Delivery):
    """One delivery; the entry of its consumer's list of what is in hand, too."""

    __slots__ = ("_connection", "deadline", "first_seq", "of", "stored")

    def __init__(
        self,
        of: "Holder",
        stored: Stored,
        consumer_seq: int,
        first_seq: int,
        deliveries: int,
        pending: int,
        deadline: float,
        connection: Connection,
    ) -> None:
        self.of = of
        self._connection = connection
        self.is_settled = False
        self.stored = stored
        self.stream = of.stream_name
        self.consumer = of.name
        self.subject = stored.subject
        self.headers = stored.headers
        self.data = stored.data
        self.seq = stored.seq
        self.consumer_seq = consumer_seq
        self.first_seq = first_seq
        self.deliveries = deliveries
        self.pending = pending
        self.deadline = deadline

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.stored.time, UTC)

    async def ack(self) -> None:
        self.settle()
        self.of.ack(self.seq)

    async def ack_sync(self, timeout: float = 5.0) -> None:
        self.settle()
        if not self._connection.connected():
            raise AckTimeout("bus", f"{self.stream}:{self.seq} was not confirmed")
        self.of.ack(self.seq)

    async def nak(self, delay: float = 0.0) -> None:
        self.settle()
        self.of.nak(self.seq, delay)

    async def in_progress(self) -> None:
        if self.is_settled:
            raise AlreadySettled(f"{self.stream}:{self.seq} was settled")
        if self._connection.closed():
            raise Disconnected("bus")
        self.of.in_progress(self.seq)

    async def term(self, reason: str = "") -> None:
        self.settle()
        self.of.term(self.seq, reason, self.consumer_seq, self.deliveries)

    def settle(self) -> None:
        """Once only: raises AlreadySettled."""
        if self.is_settled:
            raise AlreadySettled(f"{self.stream}:{self.seq} was settled")
        if self._connection.closed():
            raise Disconnected("bus")
        self.is_settled = True
