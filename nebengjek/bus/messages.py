"""Messages as the port carries them: bytes, a literal subject, headers of one line each (rule N6 of docs/bus.md)."""

import re
from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from nebengjek.bus.errors import InvalidHeader
from nebengjek.bus.subjects import check_subject

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
Headers = Mapping[str, str]


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


_HEADER_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_good_keys: set[str] = set()


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
