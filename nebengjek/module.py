"""What a module is: a value that says what it serves, says, hears, watches, asks, answers and sweeps.

``says``: its events, which no other module says. ``asks``: queries that it puts to others. Where each module has a
user of its own at the server, these and no others are permitted to it (``nebengjek nats-permissions``). ``hears``:
durable, each event once per module, until it succeeds. ``watches``: every pod, at most once. ``answers``:
request-reply in the queue group of the module's name. ``sweeps``: what every pod does each few seconds; whoever comes
first does it, the database decides.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nebengjek.bus.handling import Answering, Hearing, Listening, Telling, Watching
from nebengjek.bus.specs import StreamSpec
from nebengjek.contracts.message import Event, Query

E = TypeVar("E", bound=Event)
A = TypeVar("A")
Q = TypeVar("Q", bound=Query[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """``run`` each ``seconds``, on every pod; a failure is logged and counted, the next round comes anyway."""

    seconds: float
    run: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The migrations (Alembic) of a module that brings tables of its own, apart from the application's.

    ``folder`` holds the scripts, ``head`` is the newest revision. The tables' metadata is ``nebengjek.sql.tables()``.
    """

    name: str
    folder: Path
    head: str


class SmsSender(Protocol):
    """Brings a text to a phone. Raises Unavailable("sms").

    ``topic``: of one topic only the newest text is of use; whoever lets texts wait leaves the others out.
    """

    async def send(self, msisdn: str, text: str, topic: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsQueue:
    """What one-time codes are given to instead of the gateway; ``event``: what it says, whoever gives it one."""

    sender: SmsSender
    event: type[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A frame that a phone may say: ``handler(user_id, data)`` returns what the ack carries, or raises our errors.

    ``event``: two words with a dot that no other frame has. ``data`` and ``answer``: the shapes. A frame that is said
    again under its id is answered again without the handler, on the same pod or another.
    """

    event: str
    data: type[Any]
    handler: Callable[[str, Any], Awaitable[Any]]
    answer: type[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """``routes``: Litestar handlers and controllers. ``start``: awaited before the first event is heard.

    ``closing``: called when the server takes no more requests, before it waits for those under way: to end the
    answers that would never end. ``streams`` and ``history``: what a plugin brings to the bus and the database.
    ``frames``: what it tells phones, by event; ``passing``: those of them that may be missed and are not counted;
    ``commands``: what phones tell it, where ``users`` runs in the same pod. ``listens`` and ``tells``: subjects outside
    every stream. ``sms``: where ``users`` leaves its codes, in whichever pod that runs.
    """

    name: str
    routes: Sequence[Any] = ()
    says: Sequence[type[Event]] = ()
    hears: Sequence[Hearing] = ()
    watches: Sequence[Watching] = ()
    asks: Sequence[type[Query[Any]]] = ()
    answers: Sequence[Answering] = ()
    sweeps: Sequence[Sweep] = ()
    start: Callable[[], Awaitable[None]] | None = None
    closing: Callable[[], None] | None = None
    streams: Sequence[StreamSpec] = ()
    listens: Sequence[Listening] = ()
    tells: Sequence[Telling] = ()
    frames: Mapping[str, type[Any]] = field(default_factory=dict)
    passing: Collection[str] = ()
    commands: Sequence[Command] = ()
    history: History | None = None
    sms: SmsQueue | None = None


def on(event: type[E], handler: Callable[..., Awaitable[None]], **options: Any) -> Hearing:
    """``handler(event)`` or ``handler(event, context)`` for each event; options as in ``Hearing``."""
    return Hearing(event=event, handler=handler, **options)


def on_batch(
    event: type[E], handler: Callable[[Sequence[E]], Awaitable[Sequence[E] | None]], *, size: int = 256, **options: Any
) -> Hearing:
    """``handler(events)`` for up to ``size`` events at once; it returns those that failed."""
    return Hearing(event=event, handler=handler, batch=size, **options)


def watch(event: type[E], handler: Callable[[E], Awaitable[None]]) -> Watching:
    return Watching(event=event, handler=handler)


def answer(query: type[Q], handler: Callable[[Q], Awaitable[Any]]) -> Answering:
    """``handler(query)`` returns the query's answer, or raises one of our errors, which the asker gets."""
    return Answering(query=query, handler=handler)


def every(seconds: float, run: Callable[[], Awaitable[object]]) -> Sweep:
    return Sweep(seconds=seconds, run=run)
