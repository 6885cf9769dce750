"""Events as bytes and headers, and back: JSON with the type as tag; the subject alone is enough to decode."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from nebengjek.bus.interface import MSG_ID, CheckedHeaders, check_headers
from nebengjek.bus.tracing import CAUSATION_ID, CORRELATION_ID, TRACEPARENT, TRACESTATE, Trace, current, new_trace
from nebengjek.clock import Clock
from nebengjek.contracts.message import Event, message_id, token, type_of

E = TypeVar("E", bound=Event)

EVENT_TYPE = "Event-Type"
EVENT_VERSION = "Event-Version"
OCCURRED_AT = "Occurred-At"
PRODUCER = "Producer"
ORIGINAL_ID = "Original-Id"
ONLY_FOR = "Only-For"


class Undecodable(Exception):
    """Bytes that are not the event their subject says."""


class Envelope(NamedTuple):
    """A message as it is handed to the broker; made once, published as often as it takes."""

    subject: str
    data: bytes
    headers: dict[str, str]

    @property
    def message_id(self) -> str:
        return self.headers[MSG_ID]


class Codec:
    """Encode events said by ``producer``; decode what came in on a subject."""

    def __init__(self, producer: str, clock: Clock) -> None:
        check_headers({PRODUCER: producer})
        self._producer = producer
        self._clock = clock
        self._millisecond = 0
        self._text = ""
        names = (MSG_ID, EVENT_TYPE, EVENT_VERSION, CORRELATION_ID, OCCURRED_AT, PRODUCER, TRACEPARENT)
        moment = len("2026-01-01T00:00:00.000+00:00")
        self._fixed_bytes = 12 + sum(len(name) + 4 for name in names) + len("1") + moment + len(producer)
        self._encode = msgspec.json.Encoder().encode
        self._decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}

    def envelope(self, event: Event, trace: Trace | None = None) -> Envelope:
        """Raises InvalidSubject when the event's key cannot be a token."""
        event_type = type_of(event)
        key = token(getattr(event, event.key))
        cause = trace or current() or new_trace()
        name = message_id(event)
        headers = CheckedHeaders(
            {
                MSG_ID: name,
                EVENT_TYPE: event_type,
                EVENT_VERSION: "1",
                CORRELATION_ID: cause.correlation_id,
                OCCURRED_AT: self._moment(),
                PRODUCER: self._producer,
                TRACEPARENT: cause.traceparent,
            }
        )
        size = self._fixed_bytes + len(name) + len(event_type) + len(cause.correlation_id) + len(cause.traceparent)
        if cause.causation_id is not None:
            headers[CAUSATION_ID] = cause.causation_id
            size += len(CAUSATION_ID) + len(cause.causation_id) + 4
        if cause.tracestate:
            headers[TRACESTATE] = cause.tracestate
            size += len(TRACESTATE) + len(cause.tracestate) + 4
        headers.wire_bytes = size
        return Envelope(f"{event_type}.{key}", self._encode(event), headers)

    def _moment(self) -> str:
        """The present millisecond as text: made once for all messages of one millisecond."""
        millisecond = int(self._clock.seconds() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            moment = datetime.fromtimestamp(millisecond / 1000, UTC)
            self._text = f"{moment.isoformat(timespec='milliseconds')}"
        return self._text

    def encode(self, value: Any) -> bytes:
        return self._encode(value)

    def decode(self, data: bytes, kind: type[E]) -> E:
        """Raises Undecodable."""
        value: E = self.decode_any(data, kind)
        return value

    def decode_any(self, data: bytes, kind: Any) -> Any:
        decoder = self._decoders.get(kind)
        if decoder is None:
            decoder = self._decoders[kind] = msgspec.json.Decoder(kind)
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Undecodable(str(error)) from error


def original_id(headers: Mapping[str, str], stream: str, seq: int) -> str:
    """The id under which the inbox knows a message: also after a replay, and for a bare ``nats pub`` without one."""
    return headers.get(ORIGINAL_ID) or headers.get(MSG_ID) or f"{stream}:{seq}"
