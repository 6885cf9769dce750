"""Log lines: JSON with the correlation id, standard library included, and never a phone number or a token."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
import structlog
from structlog.testing import capture_logs

from nebengjek.bus.tracing import new_trace, tracing
from nebengjek.contracts.message import uuid7
from nebengjek.log import MASK, QUIET, configure, get_logger, masked_text

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; what was configured before comes back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("nebengjek.bus", *QUIET)}
    before = structlog.get_config()
    yield io.StringIO()
    root.handlers = handlers
    root.setLevel(level)
    for name, quiet in levels.items():
        logging.getLogger(name).setLevel(quiet)
    logging.captureWarnings(False)
    structlog.configure(**before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_the_facts(stream: io.StringIO) -> None:
    configure(format="json", stream=stream)
    get_logger("nebengjek.rides").info("ride.completed", ride="r-1", total=12_000)
    (line,) = lines(stream)
    assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
    assert (line["event"], line["level"], line["logger"]) == ("ride.completed", "info", "nebengjek.rides")
    assert (line["ride"], line["total"]) == ("r-1", 12_000)
    assert line["timestamp"].endswith("Z")


def test_lines_carry_the_correlation_id_of_what_is_being_handled(stream: io.StringIO) -> None:
    configure(format="json", stream=stream)
    trace = new_trace()
    with tracing(trace):
        get_logger("x").info("inside")
        logging.getLogger("uvicorn.error").warning("of a library: %s", 1)
    get_logger("x").info("outside")
    inside, foreign, outside = lines(stream)
    assert inside["correlation_id"] == foreign["correlation_id"] == trace.correlation_id
    assert inside["trace_id"] == trace.traceparent[3:35]
    assert foreign["event"] == "of a library: 1"
    assert "correlation_id" not in outside


def test_the_level_holds(stream: io.StringIO) -> None:
    configure(level="warning", format="json", stream=stream)
    get_logger("x").info("quiet")
    get_logger("x").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_audit_shows_what_the_bus_says_at_debug_level(stream: io.StringIO) -> None:
    configure(level="info", format="json", stream=stream, audit=True)
    get_logger("nebengjek.bus").debug("message.published", id="m-1")
    get_logger("nebengjek.users").debug("quiet")
    assert [line["event"] for line in lines(stream)] == ["message.published"]


def test_pretty_is_for_people(stream: io.StringIO) -> None:
    configure(format="pretty", stream=stream)
    get_logger("x").info("ride.completed", ride="r-1")
    assert "ride.completed" in stream.getvalue()
    assert "ride=r-1" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        lines(stream)


def test_a_stream_that_is_no_terminal_gets_json(stream: io.StringIO) -> None:
    configure(stream=stream)
    get_logger("x").info("hello")
    assert lines(stream)[0]["event"] == "hello"


@pytest.mark.parametrize("format", ["json", "pretty"])
def test_no_personal_data_wherever_it_stands(stream: io.StringIO, format: Any) -> None:
    configure(format=format, stream=stream)
    phone, token = "+6281234567890", jwt.encode({"sub": "u"}, "k" * 32, algorithm="HS256")
    log = get_logger("x")
    log.info("said", text=f"call {phone}", nested={"list": [f"Bearer {token}"]}, error=ValueError(phone))
    log.info("named", otp="123456", refresh_token="abc", msisdn="0811", api_key="k-1", password="p-1")
    logging.getLogger("lib").warning("user %s with %s", phone, token)
    try:
        raise ValueError(f"bad number {phone}")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    for private in (phone, phone[1:], token, "123456\n", '"123456"', "abc", "k-1", "p-1"):
        assert private not in text
    assert "bad number" in text
    assert text.count(MASK) >= 9


@pytest.mark.parametrize(
    "phone", ["081234567890", "+62 812-3456-7890", "6281234567890", "+62(0)81234567890", "0812 3456 7890"]
)
def test_phone_numbers_are_masked_as_people_write_them(phone: str) -> None:
    assert masked_text(f"<{phone}>") == f"<{MASK}>"


@pytest.mark.parametrize(
    "text",
    [
        "0.8123456789",
        "2026-08-11T08:12:34.567890Z",
        "1718000000000",
        "08123456-7890-7abc-8def-0123456789ab",
        "B 1234 XYZ",
        "6281234",
        "ride.pickup-019a0812-3456-7890-8123-456789abcdef-1",
    ],
)
def test_what_is_no_phone_number_stays(text: str) -> None:
    assert masked_text(text) == text


def test_ids_stay_readable() -> None:
    for _ in range(2000):
        identifier = uuid7()
        assert masked_text(identifier) == identifier


def test_a_value_that_is_no_json_is_said_in_words(stream: io.StringIO) -> None:
    configure(format="json", stream=stream)
    get_logger("x").info("odd", kind=ValueError, bad="\ud800", n=float("nan"))
    assert lines(stream)[0]["event"] == "odd"


def test_a_logger_that_was_used_follows_what_is_configured_later(stream: io.StringIO) -> None:
    configure(format="json", stream=io.StringIO())
    used = get_logger("nebengjek.rides")
    used.info("first")
    configure(format="json", stream=stream)
    with capture_logs() as captured:
        used.info("captured")
    used.info("second")
    assert [line["event"] for line in captured] == ["captured"]
    assert [line["event"] for line in lines(stream)] == ["second"]
