"""What an event and a query are: immutable structs whose tag is their name on the bus.

Type = the tag (``ride.pickup``). Subject = type + ``.`` + the value of the field that ``key`` names
(``ride.pickup.<ride_id>``). A query's subject is ``rpc.`` + its tag (``rpc.match.accept``).
"""

import itertools
import os
import re
import secrets
import time
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from msgspec import Struct

from nebengjek.errors import Invalid

Answer = TypeVar("Answer")

_TOKEN = re.compile(r"[!-)+,/-=?-~-]{1,128}")
"""ASCII 33-126 without the dot and the wildcards."""
_known_types: set[object] = set()
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


class InvalidSubject(Invalid):
    """A subject or a token of one that is empty, has a wildcard, a dot, a space or a non-ASCII character."""

    code = "INVALID_SUBJECT"


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened. Fields are only ever added inside a version; receivers ignore unknown ones."""

    key: ClassVar[str]
    """The field whose value is the last token of the subject."""
    sensitive: ClassVar[bool] = False
    """Sealed on its way, where the settings have a key: what it says is about a person."""
    foreign_type: ClassVar[str | None] = None
    """The type of an event whose body has the fields of somebody else's schema, so no tag among them."""
    number: ClassVar[str | None] = "version"
    """The field that counts events of this type and key (for the message id); None: a UUIDv7 is made instead."""


class Query(Struct, Generic[Answer], frozen=True, kw_only=True):
    """Something asked for, answered by exactly one module; safe to repeat after a timeout."""


def type_of(message: Event | type[Event] | Query[Any] | type[Query[Any]]) -> str:
    """The tag: ``ride.pickup``. Raises TypeError for a struct without one."""
    tag: object = message.__struct_config__.tag
    if tag is None:
        tag = getattr(message, "foreign_type", None)
    if tag in _known_types:
        return str(tag)
    if not isinstance(tag, str) or not _TYPE.fullmatch(tag):
        raise TypeError(f"{message!r} has no tag of the form domain.action, but {tag!r}")
    _known_types.add(tag)
    return tag


def token(value: str) -> str:
    """``value`` when it is one literal subject token. Raises InvalidSubject otherwise."""
    if not _TOKEN.fullmatch(value):
        raise InvalidSubject(f"{value[:64]!r} cannot be a token of a subject")
    return value


def subject_of(event: Event) -> str:
    """``ride.pickup.<ride_id>``. Raises InvalidSubject when the key's value is no single token."""
    return f"{type_of(event)}.{token(getattr(event, event.key))}"


def rpc_subject(query: Query[Any] | type[Query[Any]]) -> str:
    """``rpc.match.accept``: outside every stream, or a stream's PubAck would win the race as the reply."""
    return f"rpc.{type_of(query)}"


def answer_type(query: type[Query[Any]]) -> Any:
    """The type that the query's answer has: the ``A`` of its base ``Query[A]``."""
    for base in getattr(query, "__orig_bases__", ()):
        if get_origin(base) is Query:
            return get_args(base)[0]
    raise TypeError(f"{query.__name__} does not say what answers it: class {query.__name__}(Query[Answer], ...)")


def message_id(event: Event) -> str:
    """``{type}-{entity id}-{n}``, made once, before the first try to publish. A clock would de-duplicate nothing."""
    number = getattr(event, event.number) if event.number else uuid7()
    return f"{type_of(event)}-{getattr(event, event.key)}-{number}"


def is_id(text: str) -> bool:
    """Can it be one of our ids at all? What comes from outside may be anything, and PostgreSQL chokes on a NUL."""
    return _ID.fullmatch(text) is not None


def uuid7() -> str:
    """A time-ordered id (RFC 9562, version 7): 48 bits of unix milliseconds, 26 random bits, and a counter of 48.

    The random bits are drawn anew each millisecond, the counter begins at random in each process (section 6.2 there):
    two phones' points of one millisecond need no second look into the operating system's entropy.
    """
    global _millisecond, _head
    now = time.time_ns() // 1_000_000
    if now > _millisecond:
        _millisecond = now
        bits = secrets.randbits(26)
        _head = f"{now >> 16:08x}-{now & 0xFFFF:04x}-7{bits >> 14:03x}-{0x8000 | bits & 0x3FFF:04x}-"
    return _head + next(_count).to_bytes(6).hex()


_millisecond = 0
_head = ""
_count = itertools.count()


def _begin_ids() -> None:
    """Begin somewhere else: also a forked child, which must not give out its parent's ids."""
    global _millisecond, _count
    _millisecond = 0
    _count = itertools.count(secrets.randbits(47))


_begin_ids()
os.register_at_fork(after_in_child=_begin_ids)
