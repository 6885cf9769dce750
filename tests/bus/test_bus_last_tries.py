"""A process that dies on the last try leaves exactly one dead letter, whoever listens when (K2)."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from nebengjek.bus import last_tries
from nebengjek.bus.errors import PublishRefused
from nebengjek.bus.interface import Broker
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import StreamSpec
from nebengjek.module import Module, on
from tests.bus.stage import ADVISORIES, AUDIT, DEAD, THINGS, Ear, Noted, Seen, Stage, Thing, within

CONSUMER = "thing_happened_m"
DIED = "dead process died on the last try"
GAVE_UP_A_NOTE = b'{"stream":"AUDIT","consumer":"audit_noted_m","stream_seq":1,"deliveries":5}'


def module(ear: Ear | None = None) -> Module:
    return Module(name="m", hears=[on(Thing, ear or Ear(), max_deliver=1, ack_wait=0.4)])


async def dies(broker: Broker, messages: int = 1) -> None:
    """Somebody takes them and is heard of no more; the server says so."""
    before = (await broker.stream_info(ADVISORIES.name)).messages
    batch = await within(broker.pull("THINGS", CONSUMER, batch=messages, expires=2.0))
    assert [delivery.deliveries for delivery in batch.messages] == [1] * messages

    async def said() -> None:
        # The server gives up on a message while somebody waits for one.
        while (await broker.stream_info(ADVISORIES.name)).messages < before + messages:
            await broker.pull("THINGS", CONSUMER, expires=0.1)

    await within(said())


async def handled(bus: MessageBus, count: int) -> None:
    """So many advisories were looked at."""

    async def acked() -> None:
        while (await bus.broker.consumer_info(ADVISORIES.name, "dead_letters_m")).ack_floor.consumer < count:
            await bus.broker.sleep(0.02)

    await within(acked())


async def nobody_there(stage: Stage, *, specs: tuple[StreamSpec, ...] = (THINGS, AUDIT, DEAD, ADVISORIES)) -> Broker:
    """Streams and consumers as after a start, one thing published, and no pod."""
    first = await stage.process(module(), running=False, specs=specs)
    await first.publish(Thing(n=9))
    if not stage.is_memory:
        await stage.end(first)
        return await stage.harness.make_broker()
    # The last pod of a broker in the process would take it along.
    for task in asyncio.all_tasks():
        if task.get_name() == "last tries":
            task.cancel()
    return first.broker


async def test_nobody_listens_when_the_server_says_so(stage: Stage) -> None:
    broker = await nobody_there(stage)
    await dies(broker)
    assert (await broker.stream_info("THINGS")).messages == 1
    seen, ear = Seen(), Ear()
    bus = await stage.process(module(ear), seen=seen)
    await seen.comes_to(DIED, 1)
    await handled(bus, 1)
    [dead] = await bus.dead_letters.list()
    assert (dead.consumer, dead.deliveries, dead.reason) == (CONSUMER, 1, "process died on the last try")
    assert dead.data == '{"type":"thing.happened","thing_id":"t","n":9}'
    assert ear.heard == []
    # On an interest stream it would block the message for all.
    assert (await bus.broker.stream_info("THINGS")).messages == 0
    assert await bus.orphans() == []


async def test_several_pods_and_a_restart_make_one_of_each(stage: Stage) -> None:
    broker = await nobody_there(stage)
    for n in range(4):
        await broker.submit("thing.happened.x", b'{"type":"thing.happened","thing_id":"x","n":%d}' % n, {})
    await dies(broker, 5)
    seen = Seen()
    pods = [await stage.process(module(), seen=seen) for _ in range(3)]
    await seen.comes_to(DIED, 5)
    await handled(pods[0], 5)
    letters = await pods[0].dead_letters.list()
    assert sorted(letter.data[-2] for letter in letters) == ["0", "1", "2", "3", "9"]
    if not stage.is_memory:
        await stage.harness.restart()
        again = await stage.process(module(), seen=seen)
        assert await again.dead_letters.count() == 5
    assert seen.counts[DIED] == 5


async def test_a_letter_that_is_there_is_not_written_again_however_late(stage: Stage) -> None:
    """The stream's window for duplicates is over."""
    short = structs.replace(DEAD, duplicate_window=0.1)
    seen = Seen()
    bus = await stage.process(
        Module(name="m", hears=[on(Noted, Ear())]), seen=seen, specs=(THINGS, AUDIT, short, ADVISORIES)
    )
    await bus.publish(Noted())
    for count in (1, 2):
        await bus.broker.core_publish(f"{last_tries.SUBJECT}.AUDIT.audit_noted_m", GAVE_UP_A_NOTE)
        await handled(bus, count)
        assert [letter.reason for letter in await bus.dead_letters.list()] == [last_tries.REASON]
        await bus.broker.sleep(0.3)
    assert seen.counts[DIED] == 1


async def test_a_letter_that_cannot_be_stored_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_tries, "AGAIN", 0.1)
    broker = await nobody_there(stage)
    await dies(broker)
    bus = stage.new_bus(module())
    add, tries = bus.dead_letters.add, 0

    async def full(*given: Any, **named: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise PublishRefused(10077, "maximum messages exceeded", status=503)
        await add(*given, **named)

    monkeypatch.setattr(bus.dead_letters, "add", full)
    await within(bus.start())
    await handled(bus, 3)
    assert tries == 3
    assert await bus.dead_letters.count() == 1


async def test_what_is_not_ours_or_gone_is_nothing(stage: Stage) -> None:
    broker = await nobody_there(stage)
    await dies(broker)
    await broker.purge_stream("THINGS")
    subject = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.{}"
    for stream, consumer in (("THINGS", "somebody_elses"), ("OTHER", "c")):
        body = f'{{"stream":"{stream}","consumer":"{consumer}","stream_seq":1,"deliveries":3}}'
        await broker.core_publish(subject.format(stream, consumer), body.encode())
    await broker.core_publish(subject.format("THINGS", CONSUMER), b"no advisory")
    seen = Seen()
    bus = await stage.process(module(), seen=seen)
    await handled(bus, 2)
    assert (await bus.broker.consumer_info(ADVISORIES.name, "dead_letters_m")).num_pending == 0
    assert await bus.dead_letters.count() == 0
    assert seen.counts[DIED] == 0


async def test_the_stream_of_advisories_is_made_again(stage: Stage) -> None:
    seen = Seen()
    bus = await stage.process(Module(name="m", hears=[on(Noted, Ear())]), seen=seen)
    await bus.broker.delete_stream(ADVISORIES.name)

    async def there() -> None:
        while ADVISORIES.name not in {info.spec.name for info in await bus.broker.streams()}:
            await bus.broker.sleep(0.02)
        while not await bus.broker.consumers(ADVISORIES.name):
            await bus.broker.sleep(0.02)

    await within(there())
    await bus.publish(Noted())
    await bus.broker.core_publish(f"{last_tries.SUBJECT}.AUDIT.audit_noted_m", GAVE_UP_A_NOTE)
    await seen.comes_to(DIED, 1)
    await handled(bus, 1)
