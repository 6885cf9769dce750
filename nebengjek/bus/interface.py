"""``Broker``, the port below the bus: JetStream's words, which exactly two classes implement.

Its values are in the files beside it (specs, messages, deliveries, errors). Durations are seconds (float), a moment is
an aware datetime, everything carries bytes. Names and subjects are checked once, before either broker sees them.

Over 300 lines because a port is read as a whole.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Self

from msgspec import Struct

from nebengjek.bus.deliveries import Batch, Consumption, Delivery
from nebengjek.bus.errors import ApiError, PublishTimeout
from nebengjek.bus.messages import MSG_ID, CoreMessage, Envelope, Headers, PubAck, StoredMessage
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec, Deliver, StreamInfo, StreamSpec
from nebengjek.errors import Invalid, NebengJekError

CORE_PENDING = 65_536
"""Messages that a core subscription holds while its handler is busy; what comes then is lost, and said in the log."""


class Subscription(ABC):
    """A core subscription; its callback runs until ``unsubscribe``."""

    @abstractmethod
    async def unsubscribe(self) -> None: ...


Outcome = PubAck | NebengJekError | asyncio.Future[PubAck]
CoreHandler = Callable[[CoreMessage], Awaitable[None]]


class ConnectionStatus(StrEnum):
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    CLOSED = "closed"


class Connection(Struct, frozen=True, kw_only=True):
    """What a connection knows of itself.

    ``since``: seconds in this status. ``reconnects``: how often it came back. ``error``: why it is not up, without
    secrets. Messages and bytes are counted over the life of the connection, also over reconnects.
    """

    status: ConnectionStatus
    where: str
    since: float = 0.0
    reconnects: int = 0
    error: str | None = None
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0


class Allowance(Struct, frozen=True, kw_only=True):
    """What an account may use of JetStream, -1 = no limit; ``consumers``: on each stream."""

    memory: int = -1
    storage: int = -1
    streams: int = -1
    consumers: int = -1


class Account(Struct, frozen=True, kw_only=True):
    """``allowed``, and what of it is taken: the bytes that streams reserve by their ``max_bytes``.

    ``tiers``: the same by number of replicas, for accounts that are limited so; then a stream counts once in its tier,
    otherwise once for each replica.
    """

    allowed: Allowance = Allowance()
    reserved_memory: int = 0
    reserved_storage: int = 0
    streams: int = 0
    tiers: dict[int, "Account"] = {}


class Broker(ABC):
    """One connection to a server that speaks JetStream. Its methods raise Disconnected without a connection."""

    durable: ClassVar[bool]
    """True: what was acknowledged survives the death of this process."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect, or begin to: with the server away this returns at once and goes on trying for ever.

        Raises Misconfigured for an address or credentials that can never work.
        """

    @abstractmethod
    async def close(self) -> None:
        """Flush what was sent and disconnect. Closing twice is harmless."""

    @property
    @abstractmethod
    def status(self) -> ConnectionStatus: ...

    @property
    @abstractmethod
    def where(self) -> str:
        """For people: ``in this process`` or the server's address, without credentials."""

    @abstractmethod
    async def wait_connected(self) -> None:
        """Return when the connection is up."""

    @abstractmethod
    def on_status(self, listener: Callable[[ConnectionStatus], None]) -> None:
        """Call ``listener`` at each change of the connection."""

    def connection(self) -> Connection:
        """The state of the connection, for health and logs."""
        return Connection(status=self.status, where=self.where)

    async def account(self) -> Account:
        """What we may use, without a limit unless somebody set one. Raises ApiError 10039 (no JetStream here)."""
        return Account()

    @abstractmethod
    def monotonic(self) -> float:
        """The clock of this broker, in seconds; only differences mean something."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Sleep by that clock."""

    # streams

    @abstractmethod
    async def create_stream(self, spec: StreamSpec) -> StreamInfo:
        """Idempotent for an equal spec. Raises ApiError 10058 (exists, other config), 10065 (overlap), 10052."""

    @abstractmethod
    async def update_stream(self, spec: StreamSpec) -> StreamInfo:
        """Raises ApiError 10059 (unknown), 10052 (what cannot be changed)."""

    async def ensure_stream(self, spec: StreamSpec) -> StreamInfo:
        """Create it, or update it to ``spec``."""
        try:
            return await self.create_stream(spec)
        except ApiError as error:
            if error.code != 10058:
                raise
        return await self.update_stream(spec)

    @abstractmethod
    async def stream_info(self, name: str) -> StreamInfo:
        """Raises ApiError 10059."""

    @abstractmethod
    async def streams(self) -> list[StreamInfo]: ...

    @abstractmethod
    async def delete_stream(self, name: str) -> None: ...

    @abstractmethod
    async def purge_stream(
        self, name: str, *, subject: str | None = None, keep: int | None = None, up_to: int | None = None
    ) -> int:
        """Remove messages (below ``up_to``), return how many. ``keep`` with ``up_to``: ApiError 10003."""

    @abstractmethod
    async def get_message(
        self, stream: str, seq: int | None = None, *, last_by_subject: str | None = None
    ) -> StoredMessage:
        """By sequence, or the last of a subject. Raises ApiError 10037 (no message)."""

    @abstractmethod
    async def delete_message(self, stream: str, seq: int) -> None:
        """Raises ApiError 10043 (no such sequence), 10057 (of a file stream: outside of the first and the last)."""

    # consumers

    @abstractmethod
    async def create_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        """Idempotent for an equal spec. Raises ApiError 10148 (exists, other config), 10059, 10099, 10100 …"""

    @abstractmethod
    async def update_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        """Raises ApiError 10149 (unknown), 10012 (what cannot be changed)."""

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        """Create it, or update it to ``spec``."""
        try:
            return await self.create_consumer(stream, spec)
        except ApiError as error:
            if error.code != 10148:
                raise
        return await self.update_consumer(stream, spec)

    @abstractmethod
    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo:
        """Raises ApiError 10014 (unknown)."""

    @abstractmethod
    async def consumers(self, stream: str) -> list[ConsumerInfo]: ...

    @abstractmethod
    async def delete_consumer(self, stream: str, name: str) -> None: ...

    @abstractmethod
    async def pause_consumer(self, stream: str, name: str, until: datetime | None) -> None:
        """Deliver nothing until then; None resumes."""

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # messages

    async def publish(
        self, subject: str, data: bytes, headers: Headers | None = None, *, message_id: str = "", timeout: float = 5.0
    ) -> PubAck:
        """Publish to the stream that takes ``subject`` and wait for its answer, at most ``timeout`` seconds.

        ``message_id`` lets it be said again without harm: inside the stream's duplicate window it is stored once.
        Raises InvalidSubject, InvalidHeader, MaxPayload, NoStream, PublishRefused, Disconnected, PublishTimeout.
        """
        said = {**(headers or {}), **({MSG_ID: message_id} if message_id else {})}
        try:
            # No wait_for: on Python 3.11 it takes a cancellation for the answer that comes in the same turn.
            async with asyncio.timeout(timeout):
                return await self.submit(subject, data, said)
        except TimeoutError:
            raise PublishTimeout("bus", f"no answer on {subject} within {timeout} s: stored or not") from None

    def submit(self, subject: str, data: bytes, headers: Headers) -> asyncio.Future[PubAck]:
        """Publish to the stream that takes ``subject``, without waiting; the future holds the answer.

        Raises InvalidSubject, InvalidHeader, MaxPayload here; the future raises NoStream, PublishRefused or
        Disconnected. It may never be done when the connection dies: the caller bounds the wait.
        """
        (outcome,) = self.submit_all((Envelope.of(subject, data, headers),))
        if isinstance(outcome, asyncio.Future):
            return outcome
        if isinstance(outcome, Invalid):
            raise outcome
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        if isinstance(outcome, PubAck):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
        return future

    @abstractmethod
    def submit_all(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Publish many, in order, without waiting; for each its answer or its refusal, or the future of it.

        The refusals and the futures are those of ``submit``. Headers and data are kept as they are: do not change them.
        """

    @abstractmethod
    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """What ``Delivery.ack`` does, for many of one consumer at less than the cost of each."""

    @abstractmethod
    async def settled(self, ack: PubAck) -> None:
        """Return when the message is safe from the death of this process.

        A durable broker returns at once; a broker in this process when every consumer has settled it.
        """

    @abstractmethod
    async def pull(
        self,
        stream: str,
        consumer: str,
        *,
        batch: int = 1,
        expires: float | None = None,
        no_wait: bool = False,
        max_bytes: int | None = None,
        heartbeat: float | None = None,
        acking: Delivery | None = None,
    ) -> Batch:
        """One pull request, collected until it ends; the same message acks ``acking``.

        Raises ValueError when heartbeat * 2 > expires, AlreadySettled.
        """

    @abstractmethod
    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        """A source for a loop that pulls ahead, at most ``prefetch`` messages that were not handed out."""

    @abstractmethod
    async def push(self, stream: str, consumer: str) -> Consumption:
        """What a push consumer delivers, from now on to us; of a group, our share of it.

        Idle, ``next`` says TIMEOUT at each heartbeat; without heartbeats it neither does, nor notices a silent server.
        Raises ApiError 10014, 10013 (somebody else listens, and there is no group), ValueError (it is pulled from).
        """

    @abstractmethod
    def ordered(
        self,
        stream: str,
        *filters: str,
        since: int | datetime | Deliver = Deliver.ALL,
        headers_only: bool = False,
        until_drained: bool = False,
    ) -> AsyncGenerator[StoredMessage, None]:
        """Read a stream from a sequence, a moment, ALL, LAST or NEW on, and go on with what is stored later.

        Each message comes once and in order, whatever breaks meanwhile; durable consumers are not disturbed.
        ``until_drained``: end when all that is stored was read. Whoever stops before the end closes it (``aclosing``).
        Raises ApiError 10059 when the stream is no more, or is a new one of the name, 10098 for a work queue.
        """

    @abstractmethod
    async def give_up(self, stream: str, consumer: str, seq: int, reason: str = "") -> None:
        """Term a message that had its last delivery and is in nobody's hand: nothing else ends it.

        Raises ApiError 10014, 10037 (it was never delivered).
        """

    # core

    @abstractmethod
    def new_inbox(self) -> str:
        """A subject of this connection's own, for answers and deliveries."""

    @abstractmethod
    async def core_publish(
        self, subject: str, data: bytes, headers: Headers | None = None, *, reply: str | None = None
    ) -> None:
        """At most once, to whoever listens now."""

    @abstractmethod
    async def subscribe(self, subject: str, handler: CoreHandler, *, queue: str | None = None) -> Subscription:
        """Call ``handler`` for each message, one at a time; of a queue group exactly one member gets it."""

    @abstractmethod
    async def request(
        self, subject: str, data: bytes, headers: Headers | None = None, *, timeout: float
    ) -> CoreMessage:
        """Raises NoResponders (at once) and RequestTimeout."""
