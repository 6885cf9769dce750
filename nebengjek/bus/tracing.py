"""Where a message comes from: correlation id and W3C trace context, carried by a context variable.

The first frame or request of a phone begins a trace; every event it causes carries the same correlation id and
trace id, and names the message that caused it (https://www.w3.org/TR/trace-context/).
"""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token

from msgspec import Struct

from nebengjek.contracts.message import uuid7

CORRELATION_ID = "Correlation-Id"
CAUSATION_ID = "Causation-Id"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
TRACEPARENT_LENGTH = 55
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Trace(Struct, frozen=True):
    """``causation_id``: the message that is being handled; None at the beginning."""

    correlation_id: str
    traceparent: str
    causation_id: str | None = None
    tracestate: str | None = None


_current: ContextVar[Trace | None] = ContextVar("nebengjek_trace", default=None)


def current() -> Trace | None:
    """The trace of what is being handled now, if it has one."""
    return _current.get()


def new_trace(correlation_id: str | None = None, traceparent: str | None = None) -> Trace:
    """The beginning of a trace, or the continuation of the caller's ``traceparent`` if that is one."""
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        return Trace(correlation_id or uuid7(), traceparent)
    bits = random.randbytes(24).hex()
    trace_id = bits[:32]
    # Without an id of the caller's the trace id is the correlation id: both name the same thing.
    return Trace(correlation_id or trace_id, f"00-{trace_id}-{bits[32:]}-01")


def enter(trace: Trace | None) -> Token[Trace | None]:
    """Make ``trace`` the current one; give the token to ``leave``."""
    return _current.set(trace)


def leave(token: Token[Trace | None]) -> None:
    _current.reset(token)


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """``trace`` is the current one inside the block."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def from_headers(headers: Mapping[str, str], message_id: str) -> Trace:
    """The trace that a received message continues.

    Its ``traceparent`` goes on as it came: where spans are recorded (``Spans``) each makes its own below it, and a
    span that nobody records would only make the caller's unfindable.
    """
    traceparent = headers.get(TRACEPARENT)
    # Whether the digits are digits was looked at where the trace came in; this runs for each message.
    if traceparent is None or len(traceparent) != TRACEPARENT_LENGTH or traceparent[2] != "-":
        traceparent = new_trace().traceparent
    correlation_id = headers.get(CORRELATION_ID) or message_id
    tracestate = headers.get(TRACESTATE)
    said = f"{correlation_id}{traceparent}{message_id}{tracestate or ''}"
    if not (said.isascii() and said.isprintable()):
        # Somebody else's message: a line break in it would become a header of ours.
        return new_trace()
    return Trace(correlation_id, traceparent, message_id, tracestate)
