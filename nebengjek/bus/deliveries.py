"""What a consumer hands out: deliveries to be settled, in batches that say why they ended."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Self

from msgspec import Struct

from nebengjek.bus.errors import ConsumerGone


class PullStatus(StrEnum):
    """Why a batch ended."""

    COMPLETE = "complete"
    TIMEOUT = "408 request timeout"
    NO_MESSAGES = "404 no messages"
    MAX_BYTES = "409 message size exceeds max bytes"
    MAX_WAITING = "409 exceeded max waiting"
    CONSUMER_DELETED = "409 consumer deleted"
    NO_CONSUMER = "503 no consumer"
    PUSH_BASED = "409 consumer is push based"
    EXCEEDED = "409 exceeded a limit of the consumer"
    SILENT = "missed heartbeats"
    DISCONNECTED = "disconnected"


class Delivery(ABC):
    """One delivery of a message to a consumer. Settle it exactly once; a second time raises AlreadySettled."""

    __slots__ = (
        "consumer",
        "consumer_seq",
        "data",
        "deliveries",
        "headers",
        "is_settled",
        "pending",
        "seq",
        "stream",
        "subject",
    )

    stream: str
    consumer: str
    subject: str
    headers: Mapping[str, str]
    data: bytes
    seq: int
    consumer_seq: int
    deliveries: int
    """1 on the first delivery."""
    pending: int
    """Matching messages after this one that were not delivered yet."""
    is_settled: bool
    """Acknowledged, given back or terminated through this object."""

    @property
    @abstractmethod
    def time(self) -> datetime:
        """When the stream stored it."""

    @abstractmethod
    async def ack(self) -> None:
        """Done: never again. Sent, not confirmed."""

    @abstractmethod
    async def ack_sync(self, timeout: float = 5.0) -> None:
        """Done, and the server says so. Raises AckTimeout."""

    @abstractmethod
    async def nak(self, delay: float = 0.0) -> None:
        """Again, not before ``delay`` seconds from now; 0 is at once."""

    @abstractmethod
    async def in_progress(self) -> None:
        """Still at it: the ack wait begins anew. May be said any number of times before settling."""

    @abstractmethod
    async def term(self, reason: str = "") -> None:
        """Never again, although it was not handled."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Leaving the block acknowledges; an exception gives it back, to come again at once, and flies on."""
        if not self.is_settled:
            await (self.ack() if error is None else self.nak())


class Batch(Struct, frozen=True):
    messages: list[Delivery]
    status: PullStatus


class Consumption(ABC):
    """Where a consumer's deliveries come from: stays over the server's return, ends with ``close``."""

    is_closed: bool = False

    @abstractmethod
    async def next(self, limit: int) -> Batch:
        """Wait for at least one message and return up to ``limit`` that are here, or why there are none.

        Statuses without messages: TIMEOUT (idle for the pull's expiry: the consumer is alive), NO_CONSUMER,
        CONSUMER_DELETED, PUSH_BASED, SILENT, DISCONNECTED. After any of them ``next`` may be called again.
        """

    @abstractmethod
    async def close(self) -> None:
        """Take no more; what came and was not handed out goes back at once."""

    @property
    @abstractmethod
    def last_pull(self) -> float:
        """The broker's clock (``Broker.monotonic``) when the server was last heard of, in seconds."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        """Every delivery, one after the other, for as long as the consumer is there.

        Raises ConsumerGone when it was deleted or is of the other kind; waits while the server is away.
        """
        while True:
            batch = await self.next(1)
            for delivery in batch.messages:
                yield delivery
            if batch.status in (PullStatus.NO_CONSUMER, PullStatus.CONSUMER_DELETED, PullStatus.PUSH_BASED):
                raise ConsumerGone(f"no messages come any more: {batch.status.value}")
            if batch.status is PullStatus.DISCONNECTED and self.is_closed:
                return
