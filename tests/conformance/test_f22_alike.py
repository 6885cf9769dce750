"""F22: whatever is done, in whatever order, both brokers deliver the same and say the same about it.

A story is a value, a list of steps, and not hypothesis's state machine: so it can be told again from the beginning
where the machine was too late for its times. When two tellings differ, what is printed is the smallest story that
hypothesis found, and the first step after which they differ.
"""

import os
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nebengjek.bus.deliveries import Delivery
from nebengjek.bus.errors import ApiError, PublishRefused
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import EXPECTED_LAST_SUBJECT_SEQ
from nebengjek.bus.specs import Ack, ConsumerInfo, Push, Retention, Storage
from tests.conformance.harness import Ear, Harness, MemoryHarness, NatsHarness, consumer, here, played, stream, submit
from tests.servers import NatsServer

ACK_WAIT, LONG, SHORT = 1.0, 1.3, 0.4
"""Steps take milliseconds: what happens within the ack wait, and what after it, is never in doubt."""

EXAMPLES = int(os.environ.get("F22_EXAMPLES", "6"))

Step = tuple[Any, ...]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from("ab"), st.integers(0, 3)),
        st.tuples(st.just("publish"), st.sampled_from("ab"), st.integers(0, 3)),
        st.tuples(st.just("pull"), st.sampled_from("cd"), st.integers(1, 3)),
        st.tuples(st.just("pull"), st.sampled_from("cd"), st.integers(1, 3)),
        st.tuples(st.just("settle"), st.integers(0, 5), st.sampled_from(("ack", "nak", "later", "term", "progress"))),
        st.tuples(st.just("settle"), st.integers(0, 5), st.just("ack")),
        st.tuples(st.just("delete"), st.integers(1, 8)),
        st.tuples(st.just("purge"), st.sampled_from(("s.a", "s.b", None))),
        st.tuples(st.just("expect"), st.sampled_from("ab"), st.integers(0, 4)),
    ),
    min_size=8,
    max_size=40,
)


class Story:
    """The same steps on one broker; ``trace`` is all that could be seen of it."""

    def __init__(self, harness: Harness, broker: Broker) -> None:
        self._harness = harness
        self._broker = broker
        self._open: dict[tuple[str, int], Delivery] = {}
        self._overdue: set[Delivery] = set()
        """Delivered longer ago than the ack wait."""
        self._ear = Ear(harness)
        self._pushed = Ear(harness)
        self.trace: list[list[Any]] = []
        """What was seen at each step, and at the end."""

    async def told(
        self, retention: Retention, steps: Sequence[Step], pause: int | None, restart: int | None
    ) -> list[list[Any]]:
        """``pause``: the step after which the ack wait passes; ``restart``: the one after which the server does."""
        await self._ear.listen(self._broker, "$JS.EVENT.ADVISORY.CONSUMER.*.S.*")
        await self._pushed.listen(self._broker, "deliver.p")
        storage = Storage.MEMORY if restart is None else Storage.FILE
        await stream(self._broker, retention=retention, storage=storage, max_msgs=6)
        queue = retention is Retention.WORKQUEUE
        if not queue:
            push = Push(subject="deliver.p")
            await consumer(self._broker, "p", "S", "s.b", push=push, ack=Ack.NONE, max_deliver=-1)
        await consumer(self._broker, "c", "S", *(["s.b"] if queue else []), ack_wait=ACK_WAIT, max_deliver=-1)
        await consumer(self._broker, "d", "S", "s.a", ack_wait=ACK_WAIT, max_deliver=-1, max_ack_pending=3)
        for number, (what, *how) in enumerate(steps):
            self.trace.append([])
            await getattr(self, f"_{what}")(*how)
            if pause is not None and number == pause % len(steps):
                await self._harness.advance(LONG)
                self._overdue.update(self._open.values())
            if restart is not None and number == restart % len(steps):
                await self._restart()
        self.trace.append([])
        await self._pull("c", 9)
        await self._pull("d", 9)
        await self._tell()
        return self.trace

    def _note(self, *what: Any) -> None:
        self.trace[-1].append(what)

    async def _publish(self, subject: str, identity: int) -> None:
        headers = {"Nats-Msg-Id": str(identity)} if identity else {}
        ack = await submit(self._broker, f"s.{subject}", b"x", headers)
        self._note("published", ack.seq, ack.duplicate)

    async def _pull(self, name: str, batch: int) -> None:
        # A server's consumers hear of a message a little after its publisher.
        await self._harness.advance(0.02)
        # A stalled consumer does not answer a pull that does not wait; one with a short expiry ends in both.
        info = await self._broker.consumer_info("S", name)
        room = info.spec.max_ack_pending - info.num_ack_pending
        if room > 0:
            got = await here(self._broker, min(batch, room), name=name)
        else:
            got = await self._harness.until(self._broker.pull("S", name, batch=batch, expires=0.1))
        for message in got.messages:
            self._open[name, message.seq] = message
        self._note(name, [(m.seq, m.deliveries, m.consumer_seq, m.pending) for m in got.messages])

    async def _settle(self, index: int, how: str) -> None:
        if not self._open:
            return
        key = sorted(self._open)[index % len(self._open)]
        message = self._open[key]
        if not await self._is_stored(message.seq):
            del self._open[key]
            return
        if message in self._overdue and how == "later":
            # It was on its way to come again: 2.12 calls it back, later servers do not.
            how = "nak"
        self._note(how, key)
        if how == "progress":
            await message.in_progress()
            return
        del self._open[key]
        if how == "ack":
            await message.ack_sync()
        elif how == "term":
            await message.term()
            await self._heard("MSG_TERMINATED", message)
        else:
            await message.nak(SHORT if how == "later" else 0.0)
            await self._heard("MSG_NAKED", message)

    async def _is_stored(self, seq: int) -> bool:
        try:
            await self._broker.get_message("S", seq)
        except ApiError:
            return False
        return True

    async def _heard(self, kind: str, delivery: Delivery) -> None:
        """The server takes its time with a nak or a term: wait until it says so."""

        def said() -> bool:
            for message in self._ear.messages:
                advisory = msgspec.json.decode(message.data)
                about = (advisory["consumer"], advisory.get("stream_seq"), advisory.get("consumer_seq"))
                if f".{kind}." in message.subject and about == (delivery.consumer, delivery.seq, delivery.consumer_seq):
                    return True
            return False

        while not said():
            await self._ear.hears(len(self._ear.messages) + 1)

    async def _delete(self, seq: int) -> None:
        try:
            await self._broker.delete_message("S", seq)
        except ApiError as error:
            self._note("not deleted", seq, error.code)
            return
        self._note("deleted", seq)

    async def _purge(self, subject: str | None) -> None:
        self._note("purged", await self._broker.purge_stream("S", subject=subject))

    async def _expect(self, subject: str, seq: int) -> None:
        """A publish that counts on what it saw last."""
        headers = {EXPECTED_LAST_SUBJECT_SEQ: str(seq)}
        try:
            ack = await submit(self._broker, f"s.{subject}", b"x", headers)
        except PublishRefused as refused:
            self._note("refused", refused.code)
        else:
            self._note("published", ack.seq, ack.duplicate)

    async def _restart(self) -> None:
        """What was in hand comes again when its ack wait is over; how much of it had passed, servers forget."""
        await self._all_pushed()
        await self._harness.restart()
        await self._harness.back(self._broker)
        await self._harness.advance(LONG)
        self._overdue.update(self._open.values())

    async def _all_pushed(self) -> None:
        if "p" in [info.name for info in await self._broker.consumers("S")]:
            await self._pushed.hears((await self._broker.consumer_info("S", "p")).delivered.consumer)

    async def _tell(self) -> None:
        await self._all_pushed()
        self._note([(one.subject, (one.reply or "").split(".")[4:7]) for one in self._pushed.messages])
        if (await self._broker.stream_info("S")).spec.retention is not Retention.WORKQUEUE:
            self._note([one.seq async for one in self._broker.ordered("S", until_drained=True)])
        info = await self._broker.stream_info("S")
        self._note(info.messages, info.bytes, info.first_seq, info.last_seq, info.deleted)
        for name in "cd":
            self._note(_seen(await self._broker.consumer_info("S", name)))


def _seen(info: ConsumerInfo) -> tuple[Any, ...]:
    return (
        info.delivered.consumer,
        info.ack_floor.consumer,
        info.num_pending,
        info.num_ack_pending,
        info.num_redelivered,
    )


def compare(server: NatsServer, retention: Retention, steps: Sequence[Step], *moments: int | None) -> None:
    memory, nats = MemoryHarness(), NatsHarness(server)
    expected: list[list[Any]] = []

    async def on_memory() -> None:
        expected.extend(await Story(memory, await memory.make_broker()).told(retention, steps, *moments))

    async def on_nats() -> None:
        trace = await Story(nats, await nats.make_broker()).told(retention, steps, *moments)
        for step, said in enumerate(trace):
            if said != expected[step]:
                last = [*map(str, steps), "the end"][step]
                message = f"step {step + 1}, {last}:\n  nats-server: {said}\n  in memory:   {expected[step]}"
                pytest.fail(message, pytrace=False)

    played(memory, on_memory)
    played(nats, on_nats)


@pytest.mark.real
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(retention=st.sampled_from(Retention), steps=STEPS, pause=st.none() | st.integers(0, 29))
def test_f22_both_brokers_are_alike(
    conformance_nats: NatsServer, retention: Retention, steps: list[Step], pause: int | None
) -> None:
    compare(conformance_nats, retention, steps, pause, None)


@pytest.mark.real
@settings(
    max_examples=EXAMPLES // 3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # To make a failure smaller would restart the server for minutes.
    phases=(Phase.explicit, Phase.generate),
)
@given(
    retention=st.sampled_from(Retention), steps=STEPS, pause=st.none() | st.integers(0, 29), restart=st.integers(0, 29)
)
def test_f22_both_brokers_are_alike_over_a_restart(
    conformance_nats: NatsServer, retention: Retention, steps: list[Step], pause: int | None, restart: int
) -> None:
    compare(conformance_nats, retention, steps, pause, restart)
