"""What chat says on the bus. ``WorkflowRequest``, ``ResponseChunk`` and ``HeartbeatMessage`` have the fields of their
document and no others, so that workers and pods of other makes can take part.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from nebengjek.contracts.message import Event

ATTEMPT = 1_000_000
"""An answer's n-th attempt counts its chunks from (n - 1) times this; from the second on the first is a marker."""
RESTART = "restart"
"""What such a marker (a ``system`` chunk) says: forget what you have read of this answer, it begins anew."""

SessionId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)")]
"""One token of a subject. In Python ``$`` alone would let a line break follow."""
MessageId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)")]
Text = Annotated[str, Meta(min_length=1, max_length=2000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]
"""Plain: of the control characters only tab and line break."""
Role = Literal["user", "assistant", "operator"]

# -- by the document


class Turn(Struct, frozen=True, kw_only=True):
    """What was said before. ``role``: ``user`` or ``assistant``."""

    role: str
    content: str


class WorkflowContext(Struct, frozen=True, kw_only=True):
    """How a question is to be answered. ``ai_provider``: ``ride_desk``, ``openai``, ``anthropic``, ``custom``."""

    ai_provider: str
    model: str = ""
    temperature: float = 0.2
    max_tokens: int = 500
    system_prompt: str | None = None
    conversation_history: list[Turn] = []


class WorkflowRequest(Event, frozen=True, kw_only=True):
    """A question for the workers, on ``chat.workflow.execute.{session_id}``."""

    message_id: MessageId
    session_id: SessionId
    user_id: Annotated[str, Meta(min_length=1, max_length=64)]
    message: str
    context: WorkflowContext
    timestamp: datetime
    correlation_id: str
    foreign_type: ClassVar[str | None] = "chat.workflow.execute"
    key: ClassVar[str] = "session_id"
    number: ClassVar[str | None] = "message_id"
    sensitive: ClassVar[bool] = True


class ChunkMetadata(Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str | None = None
    tokens_used: int | None = None
    finish_reason: Literal["stop", "length", "error"] | None = None


class ChunkError(Struct, frozen=True, kw_only=True):
    code: str
    message: str


class ResponseChunk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of the answer to ``message_id``; the first one is number 0, each of the next one more."""

    session_id: SessionId
    message_id: MessageId
    chunk_id: Annotated[int, Meta(ge=0, le=2**53)]
    chunk: str
    chunk_type: Literal["content", "metadata", "error", "system"]
    is_final: bool
    timestamp: datetime
    correlation_id: str
    metadata: ChunkMetadata | None = None
    error: ChunkError | None = None


class ChunkBatch(Struct, frozen=True, kw_only=True):
    """Several chunks at once: those of 50 ms, at most 100."""

    session_id: SessionId
    chunks: Annotated[list[ResponseChunk], Meta(max_length=1000)]


class HeartbeatMessage(Struct, frozen=True, kw_only=True):
    """What a pod that holds readers says each five seconds on ``chat.pod.{pod_id}.heartbeat``."""

    pod_id: str
    timestamp: datetime
    active_connections: int
    memory_usage_mb: float
    cpu_usage_percent: float


class HealthResponse(Struct, frozen=True, kw_only=True):
    """What a pod answers on ``chat.pod.{pod_id}.health``. ``status``: ``healthy`` or ``draining``."""

    pod_id: str
    status: str
    active_connections: int
    timestamp: datetime


class HealthRequest(Struct, frozen=True, kw_only=True):
    """Empty; so may be the body."""


# -- beyond the document


class ResendRequest(Struct, frozen=True, kw_only=True):
    """A pod misses chunks from ``from_chunk`` on; whoever answers ``message_id`` says them again to that pod."""

    pod_id: str
    session_id: SessionId
    message_id: MessageId
    from_chunk: int


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message as it is stored. ``number``: its place in the session. ``reply_to``: the question that it answers.

    ``status`` ``incomplete``: a part of the answer was lost, ``error`` says why.
    """

    message_id: str
    session_id: str
    number: int
    role: Role
    text: str
    status: Literal["complete", "incomplete"]
    created_at: datetime
    correlation_id: str
    sender_id: str | None = None
    reply_to: str | None = None
    error: str | None = None
    attempt: int = 1


class ChatMessage(Event, frozen=True, kw_only=True, tag="chat.message"):
    """A message was stored. ``recipients``: whose phones are told."""

    session_id: str
    message_id: str
    recipients: list[str]
    message: Message
    key: ClassVar[str] = "session_id"
    number: ClassVar[str | None] = "message_id"
    sensitive: ClassVar[bool] = True


class ChatAnswered(Event, frozen=True, kw_only=True, tag="chat.answered"):
    """A worker has stored its answer; as ``ChatMessage``."""

    session_id: str
    message_id: str
    recipients: list[str]
    message: Message
    key: ClassVar[str] = "session_id"
    number: ClassVar[str | None] = "message_id"
    sensitive: ClassVar[bool] = True


class Marks(Struct, frozen=True, kw_only=True):
    """Up to which number a user's phone has the messages of a session, and up to which he has read them."""

    user_id: str
    delivered: int
    read: int


class ChatMarked(Event, frozen=True, kw_only=True, tag="chat.marked"):
    """A party of a ride has got or read more. ``recipients``: whose phones are told."""

    session_id: str
    marks: Marks
    recipients: list[str]
    key: ClassVar[str] = "session_id"
    number: ClassVar[str | None] = None


class SessionMarks(Struct, frozen=True, kw_only=True):
    """``chat.marks`` to a phone."""

    session_id: str
    marks: Marks


_batch = msgspec.json.Decoder(ChunkBatch)
_chunk = msgspec.json.Decoder(ResponseChunk)


def read_chunks(data: bytes) -> list[ResponseChunk]:
    """A chunk by itself, or a batch of one session. Raises msgspec.DecodeError."""
    try:
        return [_chunk.decode(data)]
    except msgspec.ValidationError:
        batch = _batch.decode(data)
    return [chunk for chunk in batch.chunks if chunk.session_id == batch.session_id]


def storable(text: str) -> str:
    """``text`` without what no database or no JSON holds: NUL, and halves of characters."""
    return text.replace("\0", "").encode(errors="replace").decode()


def attempt_of(chunk_id: int) -> int:
    """1 for the first."""
    return chunk_id // ATTEMPT + 1


def is_restart(chunk: ResponseChunk) -> bool:
    """Is it the marker with which a later attempt begins?"""
    return chunk.chunk_type == "system" and chunk.chunk_id >= ATTEMPT and chunk.chunk_id % ATTEMPT == 0
