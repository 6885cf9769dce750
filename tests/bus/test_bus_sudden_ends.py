"""A real server that goes without a word: its process is killed, or the network between us swallows everything."""

import asyncio
from typing import Any, ClassVar

import pytest
from structlog.typing import EventDict

from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.messages import PubAck
from nebengjek.contracts.message import Event
from nebengjek.module import Module, on
from tests.bus.stage import Ear, Noted, Seen, Stage, within
from tests.conformance.harness import NatsHarness
from tests.lateness import at_most

pytestmark = pytest.mark.real

SOON = 2.0
"""Seconds after the server's return in which loops must have gone on."""


class Long(Event, frozen=True, kw_only=True, tag="audit.long"):
    n: int
    thing_id: str = "t"
    text: str = "x" * 100_000
    key: ClassVar[str] = "thing_id"
    number: ClassVar[str | None] = None


def harness_of(stage: Stage) -> NatsHarness:
    assert isinstance(stage.harness, NatsHarness)
    return stage.harness


async def test_a_server_that_is_killed_has_kept_what_it_acknowledged(nats_stage: Stage) -> None:
    harness = harness_of(nats_stage)
    # As in production: wherever between two tries the server returns.
    harness.reconnect_wait = 2.0
    ear, seen = Ear(), Seen()
    bus = await nats_stage.process(Module(name="m", hears=[on(Noted, ear, ack_wait=2.0)]), seen=seen)
    acked: set[int] = set()

    async def publish(n: int) -> None:
        assert isinstance(await bus.publish(Noted(n=n)), PubAck)
        acked.add(n)

    for killed in range(2):
        first = 301 * killed
        publishing = [asyncio.create_task(publish(n)) for n in range(first, first + 300)]
        await seen.comes_to("published AUDIT", first + 20)
        await harness.kill()
        assert (await bus.health()).ready is False
        # What was on its way to us comes again when its ack wait is over; this was not.
        publishing.append(asyncio.create_task(publish(first + 300)))
        await harness.start()
        async with at_most(SOON):
            await ear.until(lambda last=first + 300: any(event.n == last for event in ear.heard))  # type: ignore[misc]
        await within(asyncio.gather(*publishing))
        assert len(acked) == first + 301
    await ear.until(lambda: {event.n for event in ear.heard} == acked)
    assert (await bus.broker.stream_info("AUDIT")).messages == 602
    assert bus.broker.connection().reconnects == 2


async def test_a_connection_that_swallows_everything_is_found_out(
    nats_stage: Stage, logged: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays open, as behind a firewall that forgot it: pings tell, and what nobody answered is said again."""
    monkeypatch.setattr("nebengjek.bus.publishing.PUBLISH_TIMEOUT", 0.5)
    harness = harness_of(nats_stage)
    harness.ping_interval = 0.4
    ear, seen = Ear(), Seen()
    bus = await nats_stage.process(Module(name="m", hears=[on(Long, ear, ack_wait=2.0)]), seen=seen)
    other = await nats_stage.process()
    await bus.publish(Long(n=0))
    await ear.hears(1)
    statuses: list[ConnectionStatus] = []
    bus.broker.on_status(statuses.append)
    harness.fall_silent()
    answers: list[Any] = []
    # More than the buffers on the way hold: nobody takes it from us.
    for n in range(1, 101):
        await bus.publish_soon(Long(n=n), lambda _, answer: answers.append(answer))
    await within(asyncio.gather(*(bus.publish(Long(n=n)) for n in range(101, 120))), 30)
    await within(bus.flush(), 30)
    assert {type(answer) for answer in answers} == {PubAck}
    await ear.until(lambda: {event.n for event in ear.heard} == set(range(120)))
    assert (await other.broker.stream_info("AUDIT")).messages == 120
    assert statuses == [ConnectionStatus.DOWN, ConnectionStatus.UP]
    told = [line["error"] for line in logged if line["event"] == "nats.disconnected"]
    assert told == ["ErrStaleConnection: nats: stale connection"] * 2
