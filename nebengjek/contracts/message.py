"""What an event and a query are: immutable structs whose tag is their name on the bus.

Type = the tag (``ride.pickup``). Subject = type + ``.`` + the value of the field that ``key`` names
(``ride.pickup.<ride_id>``). A query's subject is ``rpc.`` + its tag (``rpc.match.accept``).
"""

import os
import re
import time
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from msgspec import Struct

from nebengjek.errors import Invalid

Answer = TypeVar("Answer")

_TOKEN = re.compile(r"[!-~]+")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


class InvalidSubject(Invalid):
    """A subject or a token of one that is empty, has a wildcard, a dot, a space or a non-ASCII character."""

    code = "INVALID_SUBJECT"


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened. Fields are only ever added inside a version; receivers ignore unknown ones."""

    key: ClassVar[str]
    """The field whose value is the last token of the subject."""
    number: ClassVar[str | None] = "version"
    """The field that counts events of this type and key (for the message id); None: a UUIDv7 is made instead."""


class Query(Struct, Generic[Answer], frozen=True, kw_only=True):
    """Something asked for, answered by exactly one module; safe to repeat after a timeout."""


def type_of(message: Event | type[Event] | Query[Any] | type[Query[Any]]) -> str:
    """The tag: ``ride.pickup``. Raises TypeError for a struct without one."""
    tag = message.__struct_config__.tag
    if not isinstance(tag, str) or not _TYPE.fullmatch(tag):
        raise TypeError(f"{message!r} has no tag of the form domain.action, but {tag!r}")
    return tag


def token(value: str) -> str:
    """``value`` when it is one literal subject token. Raises InvalidSubject otherwise."""
    if not _TOKEN.fullmatch(value) or "." in value or "*" in value or ">" in value or len(value) > 128:
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
    """A time-ordered id (RFC 9562, version 7): 48 bits of unix milliseconds, 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | (random & 0x3FFF_FFFF_FFFF_FFFF)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
