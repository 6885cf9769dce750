"""Log lines: one JSON object each, pretty in a terminal, the standard library's loggers included; no personal data.

``log = get_logger(__name__)``, then ``log.info("ride.completed", ride=ride_id, total=total)``: a dotted name, values.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from nebengjek.bus.tracing import current

MASK = "[masked]"

# An Indonesian mobile number as people write it: +62 811-…, 62811…, 0811…; not inside a longer word, as in a UUID.
_PHONE = re.compile(r"(?<![\w.+-])(?:\+\s?62|62|0)[ -]?(?:\(0\))?8(?:[ -]?\d){7,12}(?![\w]|-\w)")
_JWT = re.compile(r"\beyJ[\w-]{4,}\.[\w-]{4,}\.[\w-]*")
_PRIVATE = re.compile(r"(?:^|_)(?:token|otp|password|passwd|secret|authorization|msisdn|phone|api_?key|cookie)$", re.I)

QUIET = ("alembic", "asyncio", "httpcore", "httpx", "sqlalchemy.engine", "uvicorn.error", "websockets")
"""Libraries that say below warning what we say ourselves, or bodies and parameters that nobody should read."""

_json = msgspec.json.Encoder(enc_hook=repr)

_chain: list[structlog.typing.Processor] = []
"""One list for good: a logger keeps the list that it was first used with, so another one would pass it by."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "json", "pretty"] = "auto",
    audit: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send every log line of this process to ``stream`` (stderr). Called again it replaces what was there.

    ``audit`` shows the bus's line for each message published and settled (debug), whatever ``level`` says.
    """
    stream = stream or sys.stderr
    pretty = format == "pretty" or (format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    _chain[:] = [
        structlog.stdlib.filter_by_level,
        *shared,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]
    structlog.configure(
        processors=_chain,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    # Exceptions become text before the mask: a traceback quotes values too. No rich traceback: it prints locals.
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=28
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask,
                console if pretty else render_json,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("nebengjek.bus").setLevel(logging.DEBUG if audit else logging.NOTSET)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def add_trace(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """``correlation_id`` and ``trace_id`` of what is being handled now, if it has any."""
    trace = current()
    if trace is not None:
        line.setdefault("correlation_id", trace.correlation_id)
        line.setdefault("trace_id", trace.traceparent[3:35])
    return line


def mask(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """The second line of defence (the first is not to log it): phone numbers, JWTs and what is named a secret."""
    return {key: _masked(key, value) for key, value in line.items()}


def masked_text(text: str) -> str:
    """``text`` without phone numbers and JWTs."""
    if "eyJ" in text:
        text = _JWT.sub(MASK, text)
    return _PHONE.sub(MASK, text)


def _masked(key: str, value: Any) -> Any:
    if value is not None and value != "" and _PRIVATE.search(key):
        return MASK
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, Mapping):
        return {str(name): _masked(str(name), item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_masked(key, item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return masked_text(str(value))


_FIRST = ("timestamp", "level", "event", "logger", "correlation_id")


def render_json(_: WrappedLogger, __: str, line: EventDict) -> str:
    """One line of JSON, the same fields in front in every line."""
    front = {name: line[name] for name in _FIRST if name in line}
    ordered = {**front, **line}
    try:
        return _json.encode(ordered).decode()
    except UnicodeEncodeError:
        # Half a surrogate pair is no UTF-8; the standard library writes it as an escape.
        return json.dumps(ordered, default=repr)
