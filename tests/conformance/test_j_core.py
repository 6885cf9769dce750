"""J: messages outside every stream, and questions with an answer."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from nebengjek.bus.errors import NoResponders, RequestTimeout
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import CoreMessage
from tests.conformance.harness import LATE, Ear, Harness, T, publish, stream, submit


async def echo(broker: Broker, subject: str, queue: str | None = None) -> list[CoreMessage]:
    """Answer each question with its own data and headers; returns the list of what was asked."""
    asked: list[CoreMessage] = []

    async def answer(message: CoreMessage) -> None:
        asked.append(message)
        assert message.reply is not None
        await broker.core_publish(message.reply, message.data, message.headers)

    await broker.subscribe(subject, answer, queue=queue)
    return asked


async def test_j1_nobody_serves(harness: Harness) -> None:
    broker = await harness.make_broker()
    began = broker.monotonic()
    with pytest.raises(NoResponders):
        await harness.until(broker.request("rpc.nobody", b"", timeout=5.0))
    assert broker.monotonic() - began < LATE


async def test_j2_nobody_answers_in_time(harness: Harness) -> None:
    broker = await harness.make_broker()
    ear = await Ear(harness).listen(broker, "rpc.slow")
    began = broker.monotonic()
    with pytest.raises(RequestTimeout):
        await harness.until(broker.request("rpc.slow", b"", timeout=T))
    assert broker.monotonic() - began >= T - 0.005
    (question,) = ear.messages
    assert question.reply is not None
    # An answer that is late goes nowhere, and is not taken for that of another question.
    await broker.core_publish(question.reply, b"late")
    await echo(broker, "rpc.quick")
    assert (await harness.until(broker.request("rpc.quick", b"now", timeout=5.0))).data == b"now"


async def test_j2_an_answer(harness: Harness) -> None:
    broker, other = await harness.make_broker(), await harness.make_broker()
    asked = await echo(other, "rpc.echo")
    answer = await harness.until(broker.request("rpc.echo", b"data", {"k": "v"}, timeout=5.0))
    assert (answer.data, answer.headers) == (b"data", {"k": "v"})
    assert (asked[0].subject, asked[0].data, asked[0].headers) == ("rpc.echo", b"data", {"k": "v"})


async def test_j3_one_of_a_group_answers(harness: Harness) -> None:
    broker = await harness.make_broker()
    members = [await echo(await harness.make_broker(), "rpc.echo", "group") for _ in range(3)]
    questions = [broker.request("rpc.echo", str(n).encode(), timeout=5.0) for n in range(30)]
    answers = await harness.until(asyncio.gather(*questions))
    assert [answer.data for answer in answers] == [str(n).encode() for n in range(30)]
    assert sum(len(asked) for asked in members) == 30


async def test_j3_groups_and_single_listeners_each_get_it(harness: Harness) -> None:
    broker = await harness.make_broker()
    one, two, alone = Ear(harness), Ear(harness), Ear(harness)
    for _ in range(2):
        await one.listen(broker, "news.*", "one")
        await two.listen(broker, "news.>", "two")
        await alone.listen(broker, "news.today")
    for _ in range(5):
        await broker.core_publish("news.today", b"")
    assert len(await one.hears(5)) == 5
    assert len(await two.hears(5)) == 5
    assert len(await alone.hears(10)) == 10
    await harness.advance(T / 2)
    assert (len(one.messages), len(two.messages), len(alone.messages)) == (5, 5, 10)


async def test_j4_a_stream_answers_first(harness: Harness) -> None:
    """Why questions must lie outside every stream: its PubAck wins the race."""
    broker = await harness.make_broker()
    await stream(broker)
    await Ear(harness).listen(broker, "s.question")
    answer = await harness.until(broker.request("s.question", b"?", timeout=5.0))
    assert json.loads(answer.data) == {"stream": "S", "seq": 1}


async def test_j7_a_stream_stores_what_is_published_without_asking(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    await broker.core_publish("s.a", b"1", {"k": "v"})
    await submit(broker, "s.a")
    assert (await broker.get_message("S", 1)).headers == {"k": "v"}


async def test_j8_listeners_hear_what_is_published_to_a_stream(harness: Harness) -> None:
    broker = await harness.make_broker()
    await stream(broker)
    ear = await Ear(harness).listen(await harness.make_broker(), "s.*")
    await publish(broker, "s.a", "s.b", headers={"k": "v"})
    heard = await ear.hears(2)
    assert [(one.subject, one.data, one.headers) for one in heard] == [
        ("s.a", b"x", {"k": "v"}),
        ("s.b", b"x", {"k": "v"}),
    ]


async def test_j9_a_subscription_ends(harness: Harness) -> None:
    broker = await harness.make_broker()
    heard: list[bytes] = []

    async def hear(message: CoreMessage) -> None:
        heard.append(message.data)

    subscription = await broker.subscribe("news", hear)
    last = await Ear(harness).listen(broker, "last")
    await broker.core_publish("news", b"1")
    await broker.core_publish("last", b"")
    await last.hears(1)
    await subscription.unsubscribe()
    await broker.core_publish("news", b"2")
    await broker.core_publish("last", b"")
    await last.hears(2)
    assert heard == [b"1"]
    with pytest.raises(NoResponders):
        await harness.until(broker.request("news", b"", timeout=1.0))


async def test_j10_a_handler_that_fails_does_not_end_the_subscription(harness: Harness) -> None:
    broker = await harness.make_broker()
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    seen: list[bytes] = []

    async def fail(message: CoreMessage) -> None:
        seen.append(message.data)
        raise ValueError("bad")

    await broker.subscribe("news", fail)
    last = await Ear(harness).listen(broker, "news")
    await broker.core_publish("news", b"1")
    await broker.core_publish("news", b"2")
    await last.hears(2)
    await harness.advance(T / 10)
    assert seen == [b"1", b"2"]
    assert complaints == ["a core handler failed: news"] * 2


async def test_j11_one_message_at_a_time(harness: Harness) -> None:
    broker = await harness.make_broker()
    running = 0
    most = 0
    order: list[bytes] = []

    async def slowly(message: CoreMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await broker.sleep(0.01)
        order.append(message.data)
        running -= 1

    await broker.subscribe("news", slowly)
    for n in range(5):
        await broker.core_publish("news", str(n).encode())

    async def all_done() -> None:
        while len(order) < 5:
            await broker.sleep(0.01)

    await harness.until(all_done())
    assert (most, order) == (1, [b"0", b"1", b"2", b"3", b"4"])


async def test_j12_a_slow_listener_loses_what_it_cannot_hold_and_nobody_else_does(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nebengjek.bus.interface.CORE_PENDING", 16)
    listener, publisher = await harness.make_broker(), await harness.make_broker()
    go = asyncio.Event()
    slow: list[int] = []

    async def hear(message: CoreMessage) -> None:
        slow.append(int(message.data))
        await go.wait()

    await listener.subscribe("news", hear)
    monkeypatch.undo()
    quick = await Ear(harness).listen(listener, "news")
    with capture_logs() as logged:
        await publisher.core_publish("news", b"0")
        await quick.hears(1)
        for n in range(1, 200):
            await publisher.core_publish("news", b"%d" % n)
        await quick.hears(200)
    # One is being handled.
    complaints = [entry for entry in logged if entry["event"] == "subscription.slow"]
    assert [entry["subject"] for entry in complaints] == ["news"]
    go.set()

    async def caught_up() -> None:
        while len(slow) < 17:
            await listener.sleep(0.01)

    await harness.until(caught_up())
    assert slow == list(range(17))
    # It is not deaf.
    await publisher.core_publish("news", b"1000")
    await quick.hears(201)

    async def hears_again() -> None:
        while 1000 not in slow:
            await listener.sleep(0.01)

    await harness.until(hears_again())
    assert slow == [*range(17), 1000]
