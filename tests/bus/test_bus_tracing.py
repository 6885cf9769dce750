"""One trace from the first frame of a phone through every event it causes (J6, M1, M5)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec import structs
from structlog.typing import EventDict

from nebengjek.bus.handling import Context
from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.tracing import Trace, current, from_headers, new_trace, tracing
from nebengjek.module import Module, answer, on, on_batch, watch
from tests.bus.stage import Double, News, Noted, Seen, Stage, Thing


async def noted(bus: MessageBus) -> list[StoredMessage]:
    """What lies in the stream that keeps everything."""
    info = await bus.broker.stream_info("AUDIT")
    return [await bus.broker.get_message("AUDIT", seq) for seq in range(1, info.last_seq + 1)]


def trace_id(traceparent: str) -> str:
    version, trace, span, flags = traceparent.split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    return trace


async def test_events_continue_the_trace_of_what_caused_them(stage: Stage) -> None:
    seen = Seen()

    async def again(event: Thing, context: Context) -> None:
        async with stage.database.begin() as tx:
            await bus.outbox.add(tx, Noted(thing_id="outbox"))
        await bus.publish(Noted(thing_id="publish"))
        await bus.publish_soon(Noted(thing_id="soon"))
        contexts.append(context)

    contexts: list[Context] = []
    bus = await stage.process(Module(name="m", hears=[on(Thing, again)]), seen=seen)
    with tracing(new_trace("from-the-phone")) as trace:
        await bus.publish(Thing())
    await seen.comes_to("published AUDIT", 3)
    for message in await noted(bus):
        assert message.headers["Correlation-Id"] == "from-the-phone"
        assert trace_id(message.headers["traceparent"]) == trace_id(trace.traceparent)
        assert message.headers["Causation-Id"] == contexts[0].message_id


async def test_events_of_a_batch_continue_the_trace_of_the_one_that_caused_them(stage: Stage) -> None:
    seen = Seen()

    async def again(events: Sequence[Thing]) -> None:
        for event in events:
            await bus.publish_soon(Noted(n=event.n), because=event)
            async with stage.database.begin() as tx:
                await bus.outbox.add(tx, Noted(n=event.n), because=event)

    module = Module(name="m", hears=[on_batch(Thing, again, size=64)])
    before = await stage.process(module, running=False, seen=seen)
    traces: dict[int, Trace] = {}
    for n in range(5):
        with tracing(new_trace(f"phone-{n}")) as traces[n]:
            await before.publish(Thing(n=n))
    bus = await stage.process(module, seen=seen)
    await seen.comes_to("published AUDIT", 10)
    messages = await noted(bus)
    assert len(messages) == 10
    for message in messages:
        n = int(message.data[-2:-1])
        assert message.headers["Correlation-Id"] == f"phone-{n}"
        assert trace_id(message.headers["traceparent"]) == trace_id(traces[n].traceparent)
        assert message.headers["Causation-Id"]


async def test_a_question_and_a_watch_continue_the_trace(stage: Stage) -> None:
    heard: dict[str, Trace | None] = {}
    news = News()

    async def double(query: Double) -> int:
        heard["answer"] = current()
        return 2 * query.n

    async def watched(event: Thing) -> None:
        heard["watch"] = current()
        news.tell()

    await stage.process(Module(name="maths", answers=[answer(Double, double)], watches=[watch(Thing, watched)]))
    bus = await stage.process()
    with tracing(new_trace("from-the-phone")) as trace:
        await bus.request(Double(n=1))
        await bus.publish(Thing())
    await news.until(lambda: "watch" in heard)
    for received in heard.values():
        assert received is not None
        assert received.correlation_id == "from-the-phone"
        assert trace_id(received.traceparent) == trace_id(trace.traceparent)


async def test_a_message_without_a_trace_begins_one(stage: Stage) -> None:
    seen = Seen()
    found: list[Trace | None] = []

    async def look(event: Thing, context: Context) -> None:
        found.append(current())

    await stage.process(Module(name="m", hears=[on(Thing, look)]), seen=seen)
    await stage.publish_raw("thing.happened.x", b"{}")
    await stage.publish_raw("thing.happened.x", b"{}", {"traceparent": "garbage", "Correlation-Id": "mine"})
    await seen.comes_to("acked", 2)
    one, two = found
    assert one is not None
    assert two is not None
    assert one.correlation_id == "THINGS:1"
    assert trace_id(one.traceparent)
    assert two.correlation_id == "mine"
    assert trace_id(two.traceparent)


async def test_handlers_do_not_inherit_each_others_traces(stage: Stage) -> None:
    seen = Seen()
    found: set[str] = set()

    async def look(event: Thing, context: Context) -> None:
        trace = current()
        assert trace is not None
        found.add(trace.correlation_id)

    with tracing(new_trace("the-start")):
        bus = await stage.process(Module(name="m", hears=[on(Thing, look)]), seen=seen)
    for n in range(3):
        with tracing(new_trace(f"phone-{n}")):
            await bus.publish(Thing(n=n))
    await seen.comes_to("acked", 3)
    assert found == {"phone-0", "phone-1", "phone-2"}
    assert current() is None


class Recorded:
    """Spans as they would be exported."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Trace, dict[str, Any]]] = []

    @contextmanager
    def span(self, name: str, trace: Trace, **attributes: str | int) -> Iterator[Trace]:
        self.spans.append((name, trace, attributes))
        yield structs.replace(trace, traceparent=f"{trace.traceparent[:36]}{len(self.spans):016x}-01")

    def close(self) -> None: ...


async def test_each_try_is_a_span_below_the_publisher_with_the_number_of_deliveries(stage: Stage) -> None:
    seen, spans = Seen(), Recorded()

    async def fail_once(event: Thing, context: Context) -> None:
        if context.deliveries == 1:
            raise ValueError("once")
        await bus.publish_soon(Noted())

    bus = await stage.process(Module(name="m", hears=[on(Thing, fail_once)]), seen=seen, spans=spans)
    with tracing(new_trace()) as trace:
        await bus.publish(Thing(thing_id="+62811"))
    await seen.comes_to("acked", 1)
    await seen.comes_to("published AUDIT", 1)
    (note,) = await noted(bus)
    assert note.headers["traceparent"] == f"{trace.traceparent[:36]}{2:016x}-01"
    assert [name for name, _, _ in spans.spans] == ["process thing_happened_m"] * 2
    assert [at["messaging.message.delivery_count"] for _, _, at in spans.spans] == [1, 2]
    assert {trace_id(given.traceparent) for _, given, _ in spans.spans} == {trace_id(trace.traceparent)}
    # What is in the message is nobody's business.
    assert "62811" not in str([attributes for _, _, attributes in spans.spans])


async def test_logs_name_messages_and_show_nothing_of_them(stage: Stage, logged: list[EventDict]) -> None:
    seen = Seen()

    async def refuse(event: Thing, context: Context) -> None:
        raise ValueError("no")

    bus = await stage.process(Module(name="m", hears=[on(Thing, refuse, max_deliver=1)]), seen=seen, audit=True)
    await bus.publish(Thing(thing_id="x", n=424242))
    await seen.comes_to("termed", 1)
    names = {entry["event"] for entry in logged}
    assert {"message.published", "event.failed", "message.dead", "message.settled"} <= names
    assert "424242" not in str(logged)


def test_the_trace_of_a_caller_is_continued() -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    trace = from_headers({"traceparent": caller, "tracestate": "vendor=1", "Correlation-Id": "c"}, "id")
    assert trace.traceparent == caller
    assert (trace.correlation_id, trace.causation_id, trace.tracestate) == ("c", "id", "vendor=1")
