"""What a handler is told and what it may say: values shared by modules and the bus."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from nebengjek.bus.errors import BusError
from nebengjek.contracts.message import Event, Query, type_of

T = TypeVar("T")

Handler = Callable[..., Awaitable[None]]
"""``async def handler(event)`` or ``handler(event, context)``. Return = ack, raise = again with backoff."""
BatchHandler = Callable[[Sequence[Any]], Awaitable[Sequence[Any] | None]]
"""``async def handler(events)``; returns the events of the batch that failed (those come again), or None."""
QueryHandler = Callable[[Any], Awaitable[Any]]


class Retry(BusError):
    """Raised by a handler: again, ``after`` seconds from now."""

    def __init__(self, after: float) -> None:
        super().__init__(f"again in {after} s")
        self.after = after


class Crashed(BusError):
    """A handler raised what is no Exception (SystemExit, a CancelledError of its own); a message may not end us."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}".rstrip(": "))


async def contained(work: Awaitable[T]) -> T:
    """What ``work`` returns. Raises Crashed where it raised what would end its task, or the process, unseen."""
    try:
        return await work
    except (Exception, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise Crashed(error) from error


class Reject(BusError):
    """Raised by a handler: this message can never be handled, dead letter now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The envelope of the event that a handler is working on."""

    consumer: str
    message_id: str
    """The same at each delivery, also after a replay from the dead letters: the inbox's key."""
    subject: str
    stream: str
    seq: int
    deliveries: int
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """A durable consumer and its handler; see ``nebengjek.module.on`` and ``on_batch``.

    ``batch``: 0 = one event a call, else up to so many, and ``linger`` seconds between two batches. ``ordered_by``:
    a field of the event; events with the same value are handled one after the other within this pod. ``ack_wait``:
    None = the bus's. ``timeout``: seconds a handler may take. ``durable``: the consumer's name where somebody else's
    document gives it one.
    """

    event: type[Event]
    handler: Callable[..., Awaitable[Any]]
    batch: int = 0
    linger: float = 0.002
    concurrency: int = 16
    ordered_by: str | None = None
    ack_wait: float | None = None
    max_deliver: int = 5
    max_ack_pending: int = 1000
    timeout: float = 120.0
    durable: str | None = None

    def consumer(self, module: str) -> str:
        """The durable consumer through which ``module`` hears it: ``ride_pickup_match``, unless it was named."""
        return self.durable or f"{type_of(self.event)}_{module}".replace(".", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """A handler that every pod runs, at most once per event, nothing stored."""

    event: type[Event]
    handler: Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A handler that answers a query; one pod of the module's queue group gets each."""

    query: type[Query[Any]]
    handler: QueryHandler


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """A subject outside every stream that each pod of a module hears, at most once; one message after the other.

    ``subject``: ``{pod_id}`` in it is the listener's own id, any other ``{name}`` stands for any one token; one that
    begins with ``any_`` is documented without it.
    ``handler(value)`` gets what ``read`` makes of the bytes; what it returns, if anything, answers whoever asked.
    ``carries`` and ``answers``: the types, for the documents; of several types ``read`` has to tell one from another.
    """

    subject: str
    carries: Sequence[type[Any]]
    handler: Callable[[Any], Awaitable[Any]]
    read: Callable[[bytes], Any]
    answers: type[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What a module publishes or asks outside every stream; ``subject`` as in ``Listening``, for the documents."""

    subject: str
    carries: Sequence[type[Any]]
