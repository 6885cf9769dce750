"""Events as bytes and headers, and back: JSON with the type as tag; the subject alone is enough to decode."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from nebengjek.bus.deliveries import Delivery
from nebengjek.bus.errors import InvalidHeader
from nebengjek.bus.messages import MSG_ID, CoreMessage, Envelope, StoredMessage, check_headers
from nebengjek.bus.payloads import CONTENT_ENCODING, Payloads, Unreadable
from nebengjek.bus.tracing import CAUSATION_ID, CORRELATION_ID, TRACEPARENT, TRACESTATE, Trace, current, new_trace
from nebengjek.clock import Clock
from nebengjek.contracts.message import Event, token, type_of, uuid7

E = TypeVar("E", bound=Event)

EVENT_TYPE = "Event-Type"
EVENT_VERSION = "Event-Version"
VERSION = "1"
"""What we say and understand; fields are only ever added inside one."""
OCCURRED_AT = "Occurred-At"
PRODUCER = "Producer"
ORIGINAL_ID = "Original-Id"
ONLY_FOR = "Only-For"
REMEMBERED_TOKENS = 50_000


class Undecodable(Exception):
    """Bytes that are not the event their subject says."""


_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
Received = CoreMessage | Delivery | StoredMessage


class _Kind(NamedTuple):
    """What all events of a type have in common. ``header_bytes``: of the headers, but for what varies."""

    type: str
    key: str
    number: str | None
    header_bytes: int
    seal: bool


class Codec:
    """Encode events said by ``producer``; decode what came in on a subject."""

    def __init__(self, producer: str, clock: Clock, payloads: Payloads | None = None) -> None:
        check_headers({PRODUCER: producer})
        self._producer = producer
        self._clock = clock
        self._payloads = payloads or Payloads()
        self._compress_above = self._payloads.compress_above
        self._millisecond = 0
        self._text = ""
        self._second = -1
        self._second_text = ""
        self._encode = msgspec.json.Encoder().encode
        self._decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}
        self._kinds: dict[type[Event], _Kind] = {}
        self._tokens: set[str] = set()

    def envelope(self, event: Event, trace: Trace | None = None) -> Envelope:
        """Raises InvalidSubject when the event's key cannot be a token, InvalidHeader when its number is no header."""
        event_type, key_field, number_field, size, seal = self._kinds.get(event.__class__) or self._kind(event)
        key = getattr(event, key_field)
        if key not in self._tokens:
            self._check(key)
        number = getattr(event, number_field) if number_field is not None else uuid7()
        if number_field is not None and number.__class__ is str and not (number.isascii() and number.isprintable()):
            # What a person has chosen may end up here, and goes on the wire as it is.
            raise InvalidHeader(f"{number[:64]!r} cannot be in the id of a message")
        name = f"{event_type}-{key}-{number}"
        cause = trace or current() or new_trace()
        correlation_id, traceparent, causation_id = cause.correlation_id, cause.traceparent, cause.causation_id
        headers = {
            MSG_ID: name,
            EVENT_TYPE: event_type,
            EVENT_VERSION: VERSION,
            CORRELATION_ID: correlation_id,
            OCCURRED_AT: self._moment(),
            PRODUCER: self._producer,
            TRACEPARENT: traceparent,
        }
        size += len(name) + len(correlation_id) + len(traceparent)
        if causation_id is not None:
            headers[CAUSATION_ID] = causation_id
            size += len(CAUSATION_ID) + len(causation_id) + 4
        if cause.tracestate:
            headers[TRACESTATE] = cause.tracestate
            size += len(TRACESTATE) + len(cause.tracestate) + 4
        subject, data = f"{event_type}.{key}", self._encode(event)
        if seal or len(data) > self._compress_above:
            data, encoding = self._payloads.wrap(data, subject, seal=seal)
            headers[CONTENT_ENCODING] = encoding
            size += len(CONTENT_ENCODING) + len(encoding) + 4
        return Envelope(subject, data, headers, size)

    def _kind(self, event: Event) -> _Kind:
        event_type = type_of(event)
        names = (MSG_ID, EVENT_TYPE, EVENT_VERSION, CORRELATION_ID, OCCURRED_AT, PRODUCER, TRACEPARENT)
        moment = len("2026-01-01T00:00:00.000+00:00")
        fixed = (
            12 + sum(len(name) + 4 for name in names) + len(VERSION) + moment + len(self._producer) + len(event_type)
        )
        kind = self._kinds[type(event)] = _Kind(
            event_type, event.key, event.number, fixed, event.sensitive and self._payloads.seals
        )
        return kind

    def _check(self, key: str) -> None:
        """The same users and rides come again and again: a token that was fine is remembered."""
        if len(self._tokens) >= REMEMBERED_TOKENS:
            self._tokens.clear()
        self._tokens.add(token(key))

    def _moment(self) -> str:
        """The present millisecond as text: made once for all messages of one millisecond."""
        millisecond = int(self._clock.seconds() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, fraction = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
            self._text = f"{self._second_text}.{fraction:03d}+00:00"
        return self._text

    def encode(self, value: Any) -> bytes:
        return self._encode(value)

    def decode(self, message: Received, kind: type[E]) -> E:
        """Raises Undecodable."""
        data = message.data
        if (version := message.headers.get(EVENT_VERSION, VERSION)) != VERSION:
            # Another version means that its fields mean something else. A dead letter waits for whoever knows it.
            raise Undecodable(f"version {version[:20]} of the event, of which only {VERSION} is known here")
        if CONTENT_ENCODING in message.headers:
            try:
                data = self._payloads.unwrap(data, message.subject, message.headers[CONTENT_ENCODING])
            except Unreadable as error:
                raise Undecodable(str(error)) from error
        decoder = self._decoders.get(kind) or self._decoder(kind)
        try:
            value: E = decoder.decode(data)
        except _BAD_JSON as error:
            raise Undecodable(str(error)) from error
        return value

    def decode_any(self, data: bytes, kind: Any) -> Any:
        """A query, or the answer to one. Raises Undecodable."""
        decoder = self._decoders.get(kind) or self._decoder(kind)
        try:
            return decoder.decode(data)
        except _BAD_JSON as error:
            raise Undecodable(str(error)) from error

    def _decoder(self, kind: Any) -> msgspec.json.Decoder[Any]:
        decoder = self._decoders[kind] = msgspec.json.Decoder(kind)
        return decoder


def original_id(headers: Mapping[str, str], stream: str, seq: int) -> str:
    """The id under which the inbox knows a message: also after a replay, and for a bare ``nats pub`` without one."""
    return headers.get(ORIGINAL_ID) or headers.get(MSG_ID) or f"{stream}:{seq}"
