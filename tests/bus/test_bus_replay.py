"""What a stream keeps can be heard again, in order, and followed (I7)."""

from contextlib import aclosing

import pytest

from nebengjek.bus.errors import ApiError
from nebengjek.module import Module, on
from tests.bus.stage import AUDIT, Ear, Noted, Seen, Stage, Thing, within


async def test_a_history_is_followed_over_a_restart_of_the_server(stage: Stage) -> None:
    ear, seen = Ear(), Seen()
    bus = await stage.process(Module(name="m", hears=[on(Noted, ear)]), seen=seen)
    for n in (0, 1):
        await bus.publish(Noted(n=n))
    async with aclosing(bus.replay(Noted, follow=True)) as history:
        assert [(await within(anext(history))).n for _ in range(2)] == [0, 1]
        await bus.publish(Noted(n=2))
        assert (await within(anext(history))).n == 2
        await stage.harness.restart()
        await stage.harness.back(bus.broker)
        for n in (3, 4):
            await bus.publish(Noted(n=n))
        assert [(await within(anext(history))).n for _ in range(2)] == [3, 4]
    # The module's own consumer went on as if nobody had read.
    await ear.hears(5)
    assert [event.n for event in ear.heard] == [0, 1, 2, 3, 4]
    assert [info.name for info in await bus.broker.consumers("AUDIT")] == ["audit_noted_m"]


async def test_many_are_read_at_once_and_only_those_of_the_type(stage: Stage) -> None:
    bus = await stage.process()
    for n in range(300):
        await bus.publish_soon(Noted(n=n))
    await within(bus.flush())
    await stage.publish_raw("audit.other.x", b"{}")
    assert [event.n async for event in bus.replay(Noted)] == list(range(300))
    assert [event.n async for event in bus.replay(Noted, since=299)] == [298, 299]
    assert [event.n async for event in bus.replay(Noted, since=0)] == list(range(300))
    assert [event async for event in bus.replay(Noted, since=900)] == []


async def test_of_a_stream_of_interest_there_is_only_what_somebody_still_wants(stage: Stage) -> None:
    waiting = Module(name="m", hears=[on(Thing, Ear())])
    bus = await stage.process(waiting, running=False)
    await bus.publish(Thing(n=1))
    assert [event.n async for event in bus.replay(Thing)] == [1]
    # Reading is no settling.
    assert [event.n async for event in bus.replay(Thing)] == [1]
    assert (await bus.broker.stream_info("THINGS")).messages == 1


async def test_a_stream_that_is_gone_is_said(stage: Stage) -> None:
    bus = await stage.process()
    await bus.broker.delete_stream(AUDIT.name)
    with pytest.raises(ApiError) as error:
        [event async for event in bus.replay(Noted)]
    assert error.value.code == 10059
