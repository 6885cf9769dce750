"""What streams and consumers should be, and what the server says of them.

Times and durations are seconds (float); a moment is an aware datetime.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct


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
