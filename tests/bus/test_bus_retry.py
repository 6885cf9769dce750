"""What becomes of a message: again with backoff, a dead letter, or done, as its handler says (K1, K2, K3, K4, K10)."""

import asyncio
from typing import Any

import pytest

from nebengjek.bus.handling import Context, Reject, Retry
from nebengjek.contracts.message import subject_of
from nebengjek.errors import Conflict, Forbidden, Invalid, NotFound, RateLimited
from nebengjek.module import Module, on
from tests.bus.stage import DELAYS, Ear, Seen, Stage, Thing, within


def raising(*errors: BaseException | None) -> Ear:
    """An ear that raises one after the other, and the last one for ever."""
    left = list(errors)

    async def act(event: Any, context: Context) -> None:
        error = left.pop(0) if len(left) > 1 else left[0]
        if error is not None:
            raise error

    return Ear(act)


async def test_a_handler_that_fails_is_tried_again_later_each_time_and_acked_when_it_passes(stage: Stage) -> None:
    ear, seen = raising(ValueError("a"), ValueError("b"), None), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing(n=7))
    await seen.comes_to("acked thing_happened_m", 1)
    assert ear.deliveries == [1, 2, 3]
    assert [event.n for event in ear.heard] == [7, 7, 7]
    first, second, third = ear.moments
    assert second - first >= DELAYS[0] - stage.harness.jitter
    assert third - second >= DELAYS[1] - stage.harness.jitter
    assert await bus.dead_letters.count() == 0
    assert seen.counts["naked"] == 2
    info = await bus.broker.consumer_info("THINGS", "thing_happened_m")
    assert (info.num_pending, info.num_ack_pending) == (0, 0)


async def test_after_the_last_try_the_message_is_a_dead_letter_with_its_cause(stage: Stage) -> None:
    ear, seen = raising(ValueError("no such street")), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, max_deliver=3)]), seen=seen)
    await bus.publish(Thing(thing_id="x", n=7))
    await seen.comes_to("termed thing_happened_m", 1)
    assert ear.deliveries == [1, 2, 3]
    [dead] = await bus.dead_letters.list()
    assert (dead.stream, dead.consumer, dead.subject) == ("THINGS", "thing_happened_m", "thing.happened.x")
    assert (dead.reason, dead.error, dead.deliveries) == ("failed", "ValueError: no such street", 3)
    assert dead.message_id == ear.contexts[0].message_id
    assert dead.data == '{"type":"thing.happened","thing_id":"x","n":7}'
    assert dead.headers["Event-Type"] == "thing.happened"
    assert dead.headers["Correlation-Id"]
    assert dead.headers["Producer"] == bus.pod_id
    # Settled: the interest stream keeps it no longer.
    info = await bus.broker.stream_info("THINGS")
    assert info.messages == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b'{"n":"seven"}',
        b'{"type":"thing.counted"}',
        b'{"thing_id":"\xff"}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "no json", "list", "wrong type", "other event", "no utf-8", "deep"],
)
async def test_what_cannot_be_decoded_is_a_dead_letter_at_once(stage: Stage, data: bytes) -> None:
    ear, seen = Ear(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await stage.publish_raw("thing.happened.x", data)
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.reason, dead.deliveries, dead.data) == ("undecodable", 1, data.decode(errors="backslashreplace"))
    assert dead.error.startswith("Undecodable: ")
    assert ear.heard == []
    # The loop goes on.
    await bus.publish(Thing(n=1))
    await ear.hears(1)


@pytest.mark.parametrize("error", [Reject("x"), Invalid("x"), Forbidden("x")], ids=lambda error: type(error).__name__)
async def test_a_refused_message_is_a_dead_letter_at_once(stage: Stage, error: Exception) -> None:
    ear, seen = raising(error), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.reason, dead.error, dead.deliveries) == ("rejected", f"{type(error).__name__}: x", 1)
    assert ear.deliveries == [1]


async def test_a_conflict_is_decided_already(stage: Stage) -> None:
    ear, seen = raising(Conflict("the match is over")), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("acked", 1)
    assert ear.deliveries == [1]
    assert await bus.dead_letters.count() == 0


@pytest.mark.parametrize(
    "error", [NotFound("x"), RateLimited("x", retry_after=1), TimeoutError()], ids=lambda error: type(error).__name__
)
async def test_other_refusals_may_pass_later(stage: Stage, error: Exception) -> None:
    ear, seen = raising(error, None), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("acked", 1)
    assert ear.deliveries == [1, 2]


async def test_retry_says_when(stage: Stage) -> None:
    ear, seen = raising(Retry(after=0.4), None), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("acked", 1)
    assert 0.4 - stage.harness.jitter <= ear.moments[1] - ear.moments[0] < 0.9


async def test_a_retry_of_the_last_try_is_a_dead_letter(stage: Stage) -> None:
    ear, seen = raising(Retry(after=0.01)), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, max_deliver=2)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("termed", 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.reason, dead.deliveries) == ("failed", 2)


async def test_a_handler_may_take_longer_than_the_ack_wait(stage: Stage) -> None:
    finish = asyncio.Event()

    async def slow(event: Any, context: Context) -> None:
        await finish.wait()

    ear, seen = Ear(slow), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, ack_wait=0.3)]), seen=seen)
    await bus.publish(Thing())
    await ear.hears(1)
    await stage.harness.advance(1.0)
    finish.set()
    await seen.comes_to("acked", 1)
    assert ear.deliveries == [1]
    assert (await bus.broker.consumer_info("THINGS", "thing_happened_m")).num_redelivered == 0


async def test_a_handler_that_takes_too_long_is_cut_off_and_tried_again(stage: Stage) -> None:
    async def stuck(event: Any, context: Context) -> None:
        if context.deliveries == 1:
            await asyncio.Event().wait()

    ear, seen = Ear(stuck), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, timeout=0.05)]), seen=seen)
    await bus.publish(Thing())
    await seen.comes_to("acked", 1)
    assert ear.deliveries == [1, 2]


async def test_so_many_at_once_and_no_more(stage: Stage) -> None:
    running, most, go = 0, 0, asyncio.Event()

    async def act(event: Any, context: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    ear, seen = Ear(act), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, ear, concurrency=3)]), seen=seen)
    for n in range(10):
        await bus.publish(Thing(n=n))
    await ear.hears(3)
    go.set()
    await seen.comes_to("acked", 10)
    assert most == 3


async def test_each_module_hears_it_once_and_by_itself(stage: Stage) -> None:
    good, bad, seen = Ear(), raising(ValueError("x"), None), Seen()
    bus = await stage.process(
        Module(name="good", hears=[on(Thing, good)]), Module(name="bad", hears=[on(Thing, bad)]), seen=seen
    )
    await bus.publish(Thing())
    await seen.comes_to("acked", 2)
    assert good.deliveries == [1]
    assert bad.deliveries == [1, 2]


async def test_a_message_of_plain_json_is_handled_too(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    await stage.process(Module(name="m", hears=[on(Thing, ear)]), seen=seen)
    await stage.publish_raw("thing.happened.x", b'{"thing_id":"x","n":3,"unknown":[1]}')
    await seen.comes_to("acked", 1)
    assert ear.heard == [Thing(thing_id="x", n=3)]
    [context] = ear.contexts
    assert context.message_id == "THINGS:1"
    assert (context.subject, context.stream, context.seq) == (subject_of(ear.heard[0]), "THINGS", 1)


async def test_two_pods_share_the_work_of_a_module(stage: Stage) -> None:
    one, two, seen = Ear(), Ear(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Thing, one)]), seen=seen)
    await stage.process(Module(name="m", hears=[on(Thing, two)]), seen=seen)
    for n in range(40):
        await bus.publish(Thing(n=n))
    await seen.comes_to("acked", 40)
    assert sorted(event.n for event in one.heard + two.heard) == list(range(40))
    assert one.heard
    assert two.heard


async def test_a_module_that_another_pod_runs_finds_what_was_said_meanwhile(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    module = Module(name="m", hears=[on(Thing, ear)])
    first = await stage.process(module, running=False)
    await first.publish(Thing(n=1))
    await stage.process(module, seen=seen)
    await within(ear.hears(1))
    assert ear.heard == [Thing(n=1)]
