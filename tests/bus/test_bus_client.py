"""The port as a client: what docs/bus.md shows runs, on both brokers; and what becomes of a block that raises."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from nebengjek.bus.errors import ConsumerGone, PublishTimeout
from nebengjek.bus.specs import ConsumerSpec, Push
from nebengjek.module import Module, on
from tests.bus.stage import Stage, Thing, within

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bus.md"
SECTION = PAGE.read_text().partition("## As a client\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


async def handled(event: Thing) -> None: ...


async def test_the_examples_of_the_page_run(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    bus = await stage.process(Module(name="match", hears=[on(Thing, handled)]))
    broker = await stage.harness.make_broker()
    # The page names a server that is not the test's.
    names: dict[str, Any] = {"bus": bus, "JetStreamBroker": lambda url, name: broker}
    for block in BLOCKS:
        text = block.replace("from nebengjek.bus.jetstream.broker import JetStreamBroker\n", "")
        running = eval(compile(text, PAGE.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.isawaitable(running):
            await within(running)
    said = capsys.readouterr().out
    assert len(BLOCKS) == 10
    assert "stored in MATCHES as 2" in said
    assert said.count('b\'{"match_id": "45') == 4
    assert "pending 0, ack pending 0, active: False" in said
    assert "MATCHES 2 " in said


async def things(stage: Stage, count: int = 1, **options: Any) -> tuple[Any, str]:
    await stage.process()
    broker = await stage.harness.make_broker()
    await broker.ensure_consumer("THINGS", ConsumerSpec(name="c", **options))
    for n in range(count):
        await broker.publish(f"thing.happened.{n}", b"{}")
    return broker, "c"


async def test_a_block_that_raises_gives_its_message_back(stage: Stage) -> None:
    broker, name = await things(stage)
    (first,) = (await broker.pull("THINGS", name, expires=2.0)).messages
    with pytest.raises(ValueError, match="no"):
        async with first:
            raise ValueError("no")
    (second,) = (await within(broker.pull("THINGS", name, expires=2.0))).messages
    assert (second.seq, second.deliveries) == (first.seq, 2)
    async with second:
        await second.ack_sync()
    assert (await broker.consumer_info("THINGS", name)).num_ack_pending == 0


async def read(broker: Any, name: str, seqs: list[int], *, until: int) -> None:
    """Take note of what comes; delete the consumer after so many, and read on."""
    async with await broker.consume("THINGS", name, prefetch=2) as source:
        async for delivery in source:
            async with delivery:
                seqs.append(delivery.seq)
            if len(seqs) == until:
                await broker.delete_consumer("THINGS", name)


async def test_deliveries_come_one_after_the_other_until_the_consumer_is_gone(stage: Stage) -> None:
    broker, name = await things(stage, 3)
    seqs: list[int] = []
    with pytest.raises(ConsumerGone):
        await within(read(broker, name, seqs, until=3))
    assert seqs == [1, 2, 3]


async def test_pulling_what_is_pushed_says_so(stage: Stage) -> None:
    broker, name = await things(stage, push=Push(subject="to.me"))
    with pytest.raises(ConsumerGone, match="push"):
        await within(read(broker, name, [], until=1))


async def test_a_publish_that_nobody_answers_ends_with_its_time(stage: Stage) -> None:
    await stage.process()
    broker = await stage.harness.make_broker()
    # A listener on a subject of no stream takes the place of "nobody": rule P1.
    await broker.subscribe("nowhere.x", deaf)
    with pytest.raises(PublishTimeout, match=r"nowhere\.x"):
        await broker.publish("nowhere.x", b"", timeout=0.05)


async def deaf(message: object) -> None: ...
