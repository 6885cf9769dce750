"""The port below the bus: JetStream's words as values, and ``Broker``, which exactly two classes implement.

Times and durations are seconds (float); a moment is an aware datetime. Everything carries bytes. Names and
subjects are checked here, once, before either broker sees them (rules N1-N6 of docs/bus.md).

Over 300 lines because a port is read as a whole: its values, its errors, its promises, the checks both share.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Self

from msgspec import Struct

from nebengjek.contracts.message import InvalidSubject
from nebengjek.errors import Invalid, NebengJekError, Unavailable

MSG_ID = "Nats-Msg-Id"
EXPECTED_STREAM = "Nats-Expected-Stream"
EXPECTED_LAST_SEQ = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_SUBJECT_SEQ = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_LAST_MSG_ID = "Nats-Expected-Last-Msg-Id"
SERVERS_OWN = frozenset(
    {
        "Nats-Batch-Commit",
        "Nats-Batch-Id",
        "Nats-Batch-Sequence",
        "Nats-Expected-Last-Subject-Sequence-Subject",
        "Nats-Incr",
        "Nats-Rollup",
        "Nats-Schedule",
        "Nats-Schedule-Next",
        "Nats-Schedule-TTL",
        "Nats-Schedule-Target",
        "Nats-Scheduler",
        "Nats-Stream-Source",
        "Nats-TTL",
    }
)
"""Headers with a meaning of their own at some server, and none here: refused rather than stored as if they were mere
words."""
MAX_PAYLOAD = 1024 * 1024
"""Bytes of headers and data together that a publish may have (the server's default)."""
CORE_PENDING = 65_536
"""Messages that a core subscription holds while its handler is busy; what comes then is lost, and said in the log."""


# -- errors ------------------------------------------------------------------------------------------------


class BusError(NebengJekError):
    """Base of what the port raises."""


class InvalidName(Invalid):
    """A stream or consumer name that is empty, longer than 255, or has one of ``. * > / \\`` or white space."""

    code = "INVALID_NAME"


class InvalidHeader(Invalid):
    """A header whose key is empty or not a token, or whose value has CR, LF, or white space at its ends.

    Or one that would have the server do what this port does not offer (``SERVERS_OWN``).
    """

    code = "INVALID_HEADER"


class MaxPayload(Invalid):
    """Headers and data are more than the server takes."""

    code = "MAX_PAYLOAD"


class NoStream(BusError):
    """No stream takes this subject."""


class ApiError(BusError):
    """The server refused; ``code`` is its error code (10058 …). The text differs between versions: never compare it."""

    def __init__(self, code: int, description: str = "", *, status: int = 400) -> None:
        super().__init__(f"{code} {description}".rstrip())
        self.code = code
        self.status = status
        self.description = description


class PublishRefused(ApiError):
    """A publish that the stream did not take: 10054, 10060, 10070, 10071, 10077."""


class PublishTimeout(Unavailable):
    """No answer in time: the message may be stored or not. Publish again with the same id."""


class NoResponders(Unavailable):
    """Nobody serves this subject."""


class RequestTimeout(Unavailable):
    """Somebody serves this subject, but no answer came in time."""


class AckTimeout(Unavailable):
    """A synchronous ack was not confirmed: the message may come again."""


class AlreadySettled(BusError):
    """This delivery was acked, nak'd or termed before."""


class ConsumerGone(BusError):
    """Somebody iterates over a consumer that is not there, or not of this kind."""


class Disconnected(Unavailable):
    """There is no connection to the server."""


class NotPermitted(BusError):
    """The server does not let this connection's user publish or listen there; the message names user and subject."""


# -- values ------------------------------------------------------------------------------------------------


class Retention(StrEnum):
    LIMITS = "limits"
    INTEREST = "interest"
    WORKQUEUE = "workqueue"


class Storage(StrEnum):
    FILE = "file"
    MEMORY = "memory"


class Discard(StrEnum):
    OLD = "old"
    NEW = "new"


class Deliver(StrEnum):
    ALL = "all"
    LAST = "last"
    NEW = "new"
    BY_SEQ = "by_start_sequence"
    BY_TIME = "by_start_time"
    LAST_PER_SUBJECT = "last_per_subject"


class Ack(StrEnum):
    EXPLICIT = "explicit"
    NONE = "none"
    ALL = "all"


class Replay(StrEnum):
    INSTANT = "instant"
    ORIGINAL = "original"


class StreamSpec(Struct, frozen=True, kw_only=True):
    """What a stream should be. Sizes in bytes, -1 = unlimited; ``max_age`` 0 = for ever."""

    name: str
    subjects: tuple[str, ...]
    retention: Retention = Retention.LIMITS
    storage: Storage = Storage.FILE
    max_age: float = 24 * 3600.0
    max_bytes: int = 100 * 1024 * 1024
    max_msgs: int = 1_000_000
    max_msgs_per_subject: int = -1
    max_msg_size: int = -1
    max_consumers: int = -1
    discard: Discard = Discard.OLD
    discard_new_per_subject: bool = False
    duplicate_window: float = 300.0
    replicas: int = 1
    description: str = ""


class Push(Struct, frozen=True, kw_only=True):
    """How a push consumer delivers: to ``subject``, as long as somebody listens to exactly that.

    ``group``: the queue group of those who listen, each message goes to one. ``heartbeat``: after so many seconds
    without a message the server says that it is there (0 = never). ``flow_control``: it waits for a listener that is
    behind; needs a heartbeat.
    """

    subject: str
    group: str | None = None
    heartbeat: float = 0.0
    flow_control: bool = False


class ConsumerSpec(Struct, frozen=True, kw_only=True):
    """What a consumer should be: durable under ``name``, or ephemeral when ``name`` is None.

    With ``push`` it delivers by itself, without it is pulled from. ``max_waiting`` pulls may wait (not of a push
    consumer: 10080); ``max_batch``, ``max_expires`` and ``max_bytes`` bound a single pull, 0 = they do not. ``replay``:
    at once, or at the pace at which it was published. ``in_memory``: what it knows ends with the server.
    """

    name: str | None = None
    filters: tuple[str, ...] = ()
    deliver: Deliver = Deliver.ALL
    start_seq: int | None = None
    start_time: datetime | None = None
    ack: Ack = Ack.EXPLICIT
    ack_wait: float = 30.0
    max_deliver: int = 3
    backoff: tuple[float, ...] = ()
    max_ack_pending: int = 1000
    push: Push | None = None
    max_waiting: int = 512
    max_batch: int = 0
    max_expires: float = 0.0
    max_bytes: int = 0
    inactive_threshold: float = 0.0
    headers_only: bool = False
    replay: Replay = Replay.INSTANT
    in_memory: bool = False
    description: str = ""


class StreamInfo(Struct, frozen=True, kw_only=True):
    spec: StreamSpec
    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    consumers: int
    deleted: int = 0


class SequencePair(Struct, frozen=True):
    """``consumer``: deliveries counted by the consumer; ``stream``: the stream's sequence."""

    consumer: int
    stream: int


class ConsumerInfo(Struct, frozen=True, kw_only=True):
    """``bound``: somebody listens to what this push consumer delivers."""

    stream: str
    name: str
    spec: ConsumerSpec
    delivered: SequencePair
    ack_floor: SequencePair
    num_pending: int
    num_ack_pending: int
    num_redelivered: int
    num_waiting: int
    bound: bool = False
    paused_until: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Does somebody wait for its messages now, and may they come?"""
        return (self.bound or self.num_waiting > 0) and self.paused_until is None


class PubAck(Struct, frozen=True):
    stream: str
    seq: int
    duplicate: bool = False


class Envelope(Struct, frozen=True):
    """A message as it is handed to the broker; made once, published as often as it takes.

    Subject and headers were checked by whoever made it; ``header_bytes`` is what ``check_headers`` says of them.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    header_bytes: int

    @classmethod
    def of(cls, subject: str, data: bytes, headers: Mapping[str, str]) -> "Envelope":
        """Raises InvalidSubject, InvalidHeader."""
        return cls(check_subject(subject), data, headers, check_headers(headers))

    @property
    def message_id(self) -> str:
        return self.headers[MSG_ID]


class StoredMessage(Struct, frozen=True, kw_only=True):
    """A message as it lies in a stream."""

    stream: str
    seq: int
    subject: str
    headers: dict[str, str]
    data: bytes
    time: datetime


class CoreMessage(Struct, frozen=True, kw_only=True):
    """A message outside every stream: at most once. ``reply``: where an answer goes."""

    subject: str
    data: bytes
    headers: dict[str, str]
    reply: str | None = None


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


class Subscription(ABC):
    """A core subscription; its callback runs until ``unsubscribe``."""

    @abstractmethod
    async def unsubscribe(self) -> None: ...


Outcome = PubAck | NebengJekError | asyncio.Future[PubAck]
CoreHandler = Callable[[CoreMessage], Awaitable[None]]
Headers = Mapping[str, str]


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
        """What we may use; a broker in this process sets no limit. Raises ApiError 10039 (no JetStream here)."""
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
            return await asyncio.wait_for(self.submit(subject, data, said), timeout)
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


# -- checks that both brokers share ------------------------------------------------------------------------

_TOKEN = re.compile(r"[!-~]+")
# Nearly every subject is fine and this runs for each publish: one match, before the search for what is wrong.
_LITERAL = re.compile(r"(?:[!-)+\-/-=?-~]+\.){0,15}[!-)+\-/-=?-~]+")
_NAME = re.compile(r"[^.*>/\\\s]{1,255}")
_HEADER_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_good_keys: set[str] = set()


def check_subject(subject: str, *, literal: bool = True) -> str:
    """Rule N1: 1-16 tokens of ASCII 33-126, at most 255 characters; wildcards only as whole tokens in a filter.

    Raises InvalidSubject.
    """
    if len(subject) <= 255 and _LITERAL.fullmatch(subject):
        return subject
    tokens = subject.split(".")
    if len(subject) > 255 or len(tokens) > 16:
        raise InvalidSubject(f"{subject[:64]!r} is longer than 255 characters or 16 tokens")
    for index, part in enumerate(tokens):
        if not _TOKEN.fullmatch(part):
            raise InvalidSubject(f"{subject[:64]!r} has an empty token, white space or a non-ASCII character")
        if "*" in part or ">" in part:
            if literal:
                raise InvalidSubject(f"{subject[:64]!r} has a wildcard")
            if part not in ("*", ">") or (part == ">" and index != len(tokens) - 1):
                raise InvalidSubject(f"{subject[:64]!r} has a wildcard inside a token, or > before the end")
    return subject


def check_name(name: str) -> str:
    """Rule N3. Raises InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:64]!r} cannot name a stream or consumer")
    return name


def check_headers(headers: Headers) -> int:
    """Rule N6; returns the bytes that they take on the wire (``header_block_size``). Raises InvalidHeader."""
    if not headers:
        return 0
    # The usual case in a few passes of C: every key is known, no value has a character that needs a closer look.
    values = "|".join(headers.values())
    if (
        headers.keys() <= _good_keys
        and values.isascii()
        and values.isprintable()
        and "| " not in values
        and " |" not in values
        and values.strip() == values
    ):
        return 12 + len("".join(headers)) + len(values) + 3 * len(headers) + 1
    size = 12
    for key, value in headers.items():
        if key not in _good_keys:
            _check_header_key(key)
        if value != value.strip() or "\r" in value or "\n" in value:
            raise InvalidHeader(f"the value of {key} has a line break, or white space at an end")
        try:
            size += len(key) + (len(value) if value.isascii() else len(value.encode())) + 4
        except UnicodeEncodeError as error:
            raise InvalidHeader(f"the value of {key} is no text") from error
    return size


def _check_header_key(key: str) -> None:
    if not _HEADER_KEY.fullmatch(key):
        raise InvalidHeader(f"{key[:64]!r} cannot be a header")
    if key in SERVERS_OWN:
        raise InvalidHeader(f"{key} would have the server do what is not offered here")
    if len(_good_keys) < 256:
        _good_keys.add(key)


def header_text(text: str) -> str:
    """``text`` as a header's value may be: one line of at most 500 characters that can be encoded."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())[:500].rstrip()


def header_block_size(headers: Headers) -> int:
    """Bytes of the header block on the wire: ``NATS/1.0`` line, ``key: value`` lines, an empty line; 0 for none."""
    if not headers:
        return 0
    return 12 + sum(len(key.encode()) + len(value.encode()) + 4 for key, value in headers.items())


def subject_matches(pattern: str, subject: str) -> bool:
    """Does the filter ``pattern`` take the literal ``subject`` (rule N1)?"""
    wanted, given = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


def subjects_collide(a: str, b: str) -> bool:
    """Is there a subject that both filters take?"""
    left, right = a.split("."), b.split(".")
    for one, other in zip(left, right, strict=False):
        if one == ">" or other == ">":
            return True
        if one != other and "*" not in (one, other):
            return False
    return len(left) == len(right)


def subject_subset(inner: str, outer: str) -> bool:
    """Does ``outer`` take every subject that ``inner`` takes?"""
    narrow, wide = inner.split("."), outer.split(".")
    for index, part in enumerate(wide):
        if part == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">":
            return False
        if part != "*" and part != narrow[index]:
            return False
    return len(narrow) == len(wide)
