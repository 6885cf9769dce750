"""A: what may be a subject, a name, a header."""

import pytest

from nebengjek.bus.errors import ApiError, InvalidHeader, InvalidName
from nebengjek.bus.specs import ConsumerSpec, StreamSpec
from nebengjek.contracts.message import InvalidSubject
from tests.conformance.harness import Ear, Harness, here, publish, stream
from tests.conformance.harness import consumer as make_consumer

BAD_SUBJECTS = [
    "a..b",
    ".a",
    "a.",
    "",
    "a b",
    "a\tb",
    "a.\r\nb",
    "é.b",
    "a.*",
    "a.>",
    "a*.b",
    ".".join("abcdefghijklmnopq"),
]


@pytest.mark.parametrize("subject", BAD_SUBJECTS)
async def test_a1_a_bad_subject_is_refused_and_stores_nothing(harness: Harness, subject: str) -> None:
    broker = await harness.make_broker()
    await stream(broker, "S", "a", "a.>")
    with pytest.raises(InvalidSubject):
        await broker.submit(subject, b"", {})
    with pytest.raises(InvalidSubject):
        await broker.core_publish(subject, b"")
    assert (await broker.stream_info("S")).messages == 0


PUBLISHED = ["a", "b", "A", "a.b", "a.B", "a.b.c", "a.c.c", "a.b.c.d", "b.a"]
FILTERS = {
    "*": ["a", "b", "A"],
    ">": PUBLISHED,
    "a.*": ["a.b", "a.B"],
    "a.>": ["a.b", "a.B", "a.b.c", "a.c.c", "a.b.c.d"],
    "a.*.c": ["a.b.c", "a.c.c"],
    "*.a": ["b.a"],
    "a.b": ["a.b"],
    "*.*.*.d": ["a.b.c.d"],
}


@pytest.mark.parametrize("pattern", FILTERS)
async def test_a3_wildcards_take_whole_tokens(harness: Harness, pattern: str) -> None:
    broker = await harness.make_broker()
    await stream(broker, "S", "*", "a.>", "b.>")
    await make_consumer(broker, "c", "S", *([pattern] if pattern != ">" else []))
    ear = await Ear(harness).listen(broker, pattern)
    await publish(broker, *PUBLISHED)
    batch = await here(broker, 20)
    assert [message.subject for message in batch.messages] == FILTERS[pattern]
    # A listener on everything hears the deliveries of consumers, too.
    heard = [one.subject for one in await ear.hears(len(FILTERS[pattern])) if not (one.reply or "").startswith("$JS")]
    assert [subject for subject in heard if not subject.startswith(("_INBOX", "$JS"))] == FILTERS[pattern]


@pytest.mark.parametrize("name", ["a.b", "a b", "a/b", "a\\b", "*", ">", "", "x" * 256])
async def test_a5_a_bad_name_is_refused_without_a_connection(harness: Harness, name: str) -> None:
    broker = harness.new_broker()
    with pytest.raises(InvalidName):
        await broker.create_stream(StreamSpec(name=name, subjects=("x",)))
    with pytest.raises(InvalidName):
        await broker.create_consumer(name, ConsumerSpec(name="c"))
    with pytest.raises(InvalidName):
        await broker.pull("S", name)
    with pytest.raises(InvalidName):
        await broker.consume("S", name, prefetch=1)


async def test_a6_streams_do_not_overlap(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker, "A", "a.>")
    with pytest.raises(ApiError) as refused:
        await stream(broker, "B", "a.b")
    assert refused.value.code == 10065
    await stream(broker, "B", "b.>")
    with pytest.raises(ApiError) as refused:
        await broker.update_stream(StreamSpec(name="B", subjects=("b.>", "a.*")))
    assert refused.value.code == 10065


@pytest.mark.parametrize("subjects", [(">",), ("$JS.API.x",), ("$SYS.x",), ("a.*", "a.b")])
async def test_a6_some_subjects_no_stream_may_take(harness: Harness, subjects: tuple[str, ...]) -> None:
    broker = await harness.make_broker()
    with pytest.raises(ApiError) as refused:
        await stream(broker, "A", *subjects)
    assert refused.value.code == 10052


BAD_HEADERS = [
    {"a b": "x"},
    {"": "x"},
    {"a:b": "x"},
    {"é": "x"},
    {"k": "a\r\nb"},
    {"k": "a\nb"},
    {"k": " v "},
    {"k": "v\t"},
    {"a/b": "x"},
    {"Nats-Rollup": "sub"},
    {"Nats-TTL": "1s"},
    {"Nats-Incr": "1"},
]


@pytest.mark.parametrize("headers", BAD_HEADERS)
async def test_a7_a_header_that_would_arrive_otherwise_is_refused(harness: Harness, headers: dict[str, str]) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    with pytest.raises(InvalidHeader):
        await broker.submit("s.a", b"", headers)
    with pytest.raises(InvalidHeader):
        await broker.core_publish("s.a", b"", headers)
    assert (await broker.stream_info("S")).messages == 0


async def test_a7_headers_arrive_as_they_were_sent(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await make_consumer(broker)
    headers = {"Event-Type": "a", "event-type": "b", "k": "v: w", "empty": "", "word": "Jalan Légian  7"}
    await publish(broker, "s.a", headers=headers)
    assert dict((await here(broker)).messages[0].headers) == headers
    assert (await broker.get_message("S", 1)).headers == headers
