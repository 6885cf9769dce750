"""Push consumers of the memory broker, and what is said to ``$JS.ACK`` and ``$JS.FC`` as a plain message (rule U1)."""

import asyncio
import re
from collections.abc import Callable

import msgspec

from nebengjek.bus.deliveries import Delivery, PullStatus
from nebengjek.bus.memory.clock import BrokerClock, Timer
from nebengjek.bus.memory.consumer import MemoryConsumer, Outlet
from nebengjek.bus.memory.core import CoreListener, CoreRouter
from nebengjek.bus.memory.delivery import Connection
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.specs import Ack, Push
from nebengjek.bus.wire_delivery import ACK_PREFIX, Listener, Message

FLOW_PREFIX = "$JS.FC."
WINDOW = 2 * 1024 * 1024
"""Bytes under way with flow control; at half of it the listener is asked how far it came."""
BATCH = 32
TURN = 256
"""Messages delivered before those who listen get their turn of the loop."""

FindConsumer = Callable[[str, str], MemoryConsumer | None]


class _Server(Connection):
    """What is pushed is settled by messages, whoever sends them."""

    def connected(self) -> bool:
        return True

    def closed(self) -> bool:
        return False


_SERVER = _Server()


class Pusher(Outlet):
    """Waits at its consumer like a pull that begins anew after each message, for as long as somebody listens."""

    def __init__(self, consumer: MemoryConsumer, push: Push, core: CoreRouter, clock: BrokerClock) -> None:
        self.bound = False
        self._consumer = consumer
        self._push = push
        self._core = core
        self._clock = clock
        self._waits = False
        self._in_turn = 0
        self._under_way = 0
        self._question: str | None = None
        self._question_at = 0
        self._questions = 0
        self._quiet_since = 0.0
        self._heartbeat: Timer | None = None
        core.watchers.add(self.look)

    def look(self) -> None:
        bound = self._core.awaited(self._push.subject, self._push.group)
        if bound == self.bound:
            return
        self.bound = bound
        self._consumer.touch()
        if bound:
            self._under_way, self._question = 0, None
            self._quiet_since = self._clock.monotonic()
            self._arm_heartbeat()
            self._resume()
        else:
            self._leave()

    def moved(self, push: Push) -> None:
        self._push = push
        self.look()

    def _resume(self) -> None:
        self._in_turn = 0
        self._wait()
        self._consumer.dispatch()

    def _wait(self) -> None:
        if self.bound and not self._waits and self._under_way <= WINDOW:
            self._waits = True
            self._consumer.waiting.append(self)

    def _leave(self) -> None:
        if self._waits:
            self._waits = False
            self._consumer.waiting.remove(self)
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    def feed(self, consumer: MemoryConsumer) -> None:
        self._waits = False
        deliver, subject = self._core.deliver, self._push.subject
        for delivery in consumer.take(BATCH, _SERVER):
            reply = _ack_subject(delivery)
            deliver(subject, delivery.data, delivery.headers, reply, about=delivery.subject)
            if self._push.flow_control:
                self._under_way += len(delivery.data) + len(delivery.subject) + len(reply)
                self._ask()
            self._in_turn += 1
        self._quiet_since = self._clock.monotonic()
        if self._in_turn < TURN:
            self._wait()
        else:
            asyncio.get_running_loop().call_soon(self._resume)

    def end(self, status: PullStatus) -> None:
        self._waits = False

    def close(self) -> None:
        self.bound = False
        self._leave()
        self._core.watchers.discard(self.look)

    def _ask(self) -> None:
        """How far did you come? Once, when half of the window is under way."""
        if self._question is None and self._under_way > WINDOW // 2:
            self._questions += 1
            self._question = f"{FLOW_PREFIX}{self._consumer.stream.name}.{self._consumer.name}.{self._questions}"
            self._question_at = self._under_way
            self._say("FlowControl Request", {}, self._question)

    def answered(self, question: str) -> None:
        if question == self._question:
            self._under_way -= self._question_at
            self._question = None
            self._ask()
            self._resume()

    def _arm_heartbeat(self) -> None:
        if self._push.heartbeat:
            self._heartbeat = self._clock.call_at(self._quiet_since + self._push.heartbeat, self._beat)

    def _beat(self) -> None:
        now = self._clock.monotonic()
        if now >= self._quiet_since + self._push.heartbeat:
            self._quiet_since = now
            last = self._consumer.info().delivered
            headers = {"Nats-Last-Consumer": str(last.consumer), "Nats-Last-Stream": str(last.stream)}
            if self._question is not None:
                headers["Nats-Consumer-Stalled"] = self._question
            self._say("Idle Heartbeat", headers, None)
        self._arm_heartbeat()

    def _say(self, what: str, headers: dict[str, str], reply: str | None) -> None:
        self._core.deliver(self._push.subject, b"", {"Status": "100", "Description": what, **headers}, reply)


def _ack_subject(delivery: Delivery) -> str:
    nanos = int(delivery.time.timestamp() * 1_000_000_000)
    return (
        f"{ACK_PREFIX}{delivery.stream}.{delivery.consumer}.{delivery.deliveries}.{delivery.seq}"
        f".{delivery.consumer_seq}.{nanos}.{delivery.pending}"
    )


class Sink(CoreListener, Listener):
    """A listener that takes each message at once."""

    def __init__(
        self,
        router: CoreRouter,
        subject: str,
        queue: str | None,
        received: Callable[[Message], None],
        connected: Callable[[], bool],
    ) -> None:
        self.subject = subject
        self.queue = queue
        self._router = router
        self._received = received
        self._connected = connected

    @property
    def connected(self) -> bool:
        return self._connected()

    def deliver(self, message: CoreMessage) -> None:
        self._received(message)

    async def stop(self) -> None:
        self._router.remove(self)

    async def drain(self) -> None:
        self._router.remove(self)


# -- what is published to a consumer's own subjects

_DELAY = re.compile(rb"([0-9.]+)(ns|us|ms|s|m|h)")
_UNITS = {b"ns": 1e-9, b"us": 1e-6, b"ms": 1e-3, b"s": 1.0, b"m": 60.0, b"h": 3600.0}


def heard_by_consumer(find: FindConsumer, core: CoreRouter, subject: str, data: bytes, reply: str | None) -> bool:
    """A message to ``$JS.ACK.…`` or ``$JS.FC.…``: do as it says; False when no consumer listens there."""
    tokens = subject.split(".")
    if subject.startswith(FLOW_PREFIX):
        consumer = find(tokens[2], tokens[3]) if len(tokens) == 5 else None
        if consumer is None or consumer.outlet is None:
            return False
        consumer.outlet.answered(subject)
        return True
    if len(tokens) < 9:
        return False
    at = 2 if len(tokens) == 9 else 4
    consumer = find(tokens[at], tokens[at + 1])
    if consumer is None or consumer.spec.ack is Ack.NONE:
        return False
    deliveries, seq, consumer_seq = (int(token) if token.isdecimal() else 0 for token in tokens[at + 2 : at + 5])
    if _settle(consumer, data, seq, consumer_seq, deliveries) and reply is not None:
        core.deliver(reply, b"", {}, None)
    return True


def _settle(consumer: MemoryConsumer, data: bytes, seq: int, consumer_seq: int, deliveries: int) -> bool:
    """Whether the server would say so: it says nothing about what it never delivered."""
    word, _, rest = data.partition(b" ")
    known = seq < consumer.next_seq
    if word in (b"", b"+ACK", b"+OK"):
        consumer.ack(seq)
        return known
    if word == b"+TERM":
        consumer.term(seq, rest.decode(errors="replace").strip(), consumer_seq, deliveries)
        return known
    if word == b"-NAK":
        consumer.nak(seq, _delay(rest))
    elif word == b"+WPI":
        consumer.in_progress(seq)
    return True


def _delay(text: bytes) -> float:
    """Seconds: ``{"delay": nanoseconds}``, or a duration such as ``1m30s``; 0 for anything else."""
    if text.startswith(b"{"):
        try:
            return max(0.0, msgspec.json.decode(text, type=dict[str, float]).get("delay", 0.0) / 1e9)
        except msgspec.DecodeError:
            return 0.0
    parts = _DELAY.findall(text)
    if b"".join(number + unit for number, unit in parts) != text.strip():
        return 0.0
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
