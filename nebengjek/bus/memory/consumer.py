"""A consumer of the memory broker: what was delivered, what comes again and when, and who waits (rules L, C and 8).

One file over 300 lines, because its parts share one state and each delivery passes through all of them.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from nebengjek.bus.deliveries import Delivery, PullStatus
from nebengjek.bus.errors import AlreadySettled
from nebengjek.bus.memory.clock import BrokerClock, Timer
from nebengjek.bus.memory.delivery import Connection, Holder, MemoryDelivery, Stored
from nebengjek.bus.specs import Ack, ConsumerInfo, ConsumerSpec, Deliver, Push, Replay, SequencePair

NEVER = math.inf


class StreamSide(ABC):
    """What a consumer needs of its stream."""

    name: str
    last_seq: int
    clock: BrokerClock

    @abstractmethod
    def released(self, freed: Sequence[Stored], *, settled: bool) -> None:
        """The last consumer let go of these: because they were settled, or because the consumer is no more."""

    @abstractmethod
    def stored_from(self, seq: int) -> Iterator[Stored]:
        """What is in the stream at and after ``seq``, in order."""

    @abstractmethod
    def advise(self, kind: str, consumer: str, body: Callable[[], dict[str, Any]]) -> None:
        """Publish ``$JS.EVENT.ADVISORY.CONSUMER.<kind>.<stream>.<consumer>``; ``body`` is only asked if heard."""

    @abstractmethod
    def expired(self, consumer: "MemoryConsumer") -> None:
        """Nobody pulled from it for its inactive threshold: remove it."""


class Waiter(ABC):
    """Somebody who waits for messages of a consumer."""

    @abstractmethod
    def feed(self, consumer: "MemoryConsumer") -> None:
        """Take one message, or take note that there is one. It was removed from the queue of those who wait."""

    @abstractmethod
    def end(self, status: PullStatus) -> None:
        """There will be no message."""


class Outlet(Waiter):
    """What a push consumer delivers through."""

    bound: bool
    """Somebody listens."""

    @abstractmethod
    def look(self) -> None:
        """See whether somebody listens, and deliver."""

    @abstractmethod
    def moved(self, push: Push) -> None:
        """Deliver to another subject or group from now on."""

    @abstractmethod
    def answered(self, question: str) -> None:
        """Who listens has come as far as ``question`` asked about."""

    @abstractmethod
    def close(self) -> None: ...


class MemoryConsumer(Holder):
    """The state of one consumer.

    New messages wait in ``_queue``; what was delivered is in ``_pending`` until it is settled; what comes again is
    in ``_again``, which is served first (L2). ``_exhausted`` had its last delivery: it is delivered no more, but
    keeps its claim, and a late ack still counts (R4).
    """

    def __init__(self, stream: StreamSide, name: str, spec: ConsumerSpec, *, claims_from: int) -> None:
        self.stream = stream
        self.stream_name = stream.name
        self.name = name
        self.spec = spec
        self.deleted = False
        self.outlet: Outlet | None = None
        self.waiting: deque[Waiter] = deque()
        self.woken = 0
        """Waiters that know of a message and have not come for it yet."""
        self._clock = stream.clock
        # A limits stream counts claims at publish time only; the others keep messages for later consumers too.
        self._claims_from = claims_from
        self._queue: deque[Stored] = deque()
        self._gone = 0
        self._only: set[int] | None = None
        self._start = 0
        self._born = stream.last_seq
        self._next_seq = 1
        self._consumer_seq = 0
        self._pending: dict[int, MemoryDelivery] = {}
        self._again: deque[int] = deque()
        self._again_set: set[int] = set()
        self._redelivered: dict[int, int] = {}
        self._exhausted: dict[int, Stored] = {}
        self._let_go: set[int] = set()
        """In hand or exhausted, and without a claim any more, since the filters changed."""
        self._floor = SequencePair(0, 0)
        self._passed: tuple[float, float] | None = None
        """Of the last new message: when it was delivered, and when it was stored."""
        self._paused_until: float | None = None
        self._check_at = NEVER
        self._timer: Timer | None = None
        self._pause_timer: Timer | None = None
        self._pace_timer: Timer | None = None
        self._idle_timer: Timer | None = None
        self._last_active = self._clock.monotonic()
        self._configure()
        self._arm_idle()

    def _configure(self) -> None:
        self._explicit = self.spec.ack is not Ack.NONE
        limit = self.spec.max_ack_pending
        self._room = limit if self._explicit and limit > 0 else 1 << 60
        self._paced = self.spec.replay is Replay.ORIGINAL

    # -- what there is to deliver

    def begin(self, matching: list[Stored]) -> None:
        """Choose, by the deliver policy, where to begin among the messages that are stored now (L12)."""
        spec = self.spec
        if spec.deliver is Deliver.ALL:
            chosen = matching
        elif spec.deliver is Deliver.LAST:
            chosen = matching[-1:]
        elif spec.deliver is Deliver.LAST_PER_SUBJECT:
            last = {stored.subject: stored for stored in matching}
            chosen = sorted(last.values(), key=lambda stored: stored.seq)
            self._only = {stored.seq for stored in chosen}
        elif spec.deliver is Deliver.BY_SEQ:
            self._start = spec.start_seq or 1
            chosen = [stored for stored in matching if stored.seq >= self._start]
        elif spec.deliver is Deliver.BY_TIME:
            # A little early: the moment that a message shows is rounded.
            since = spec.start_time.timestamp() - 1e-6 if spec.start_time else 0.0
            chosen = [stored for stored in matching if stored.time >= since]
        else:
            chosen = []
        self._next_seq = chosen[0].seq if chosen else max(self.stream.last_seq + 1, self._start)
        self._floor = SequencePair(0, self._next_seq - 1)
        for stored in chosen:
            self._queue.append(stored)
            self._claim(stored)

    def refilter(self, spec: ConsumerSpec, matching: list[Stored]) -> None:
        """Take over an updated spec; ``matching``: what its filters take of what is stored now."""
        old = {stored.seq: stored for stored in self._queue if not stored.gone}
        new = {stored.seq: stored for stored in matching if stored.seq >= max(self._next_seq, self._start)}
        if self._only is not None:
            new = {seq: stored for seq, stored in new.items() if seq > self._born or seq in self._only}
        self.spec = spec
        self._configure()
        self._queue = deque(new.values())
        self._gone = 0
        for seq in new.keys() - old.keys():
            self._claim(new[seq])
        for seq in old.keys() - new.keys():
            self._release(old[seq], settled=False)
        self._arm(self._clock.monotonic())
        self._arm_idle()
        if self.outlet is not None and spec.push is not None:
            self.outlet.moved(spec.push)
        self.dispatch()

    def claim_only(self, matching: Iterable[Stored]) -> None:
        """Have no claim on what is in hand and not among these (R2): nobody waits for our ack of it, or gets one."""
        ours = {stored.seq for stored in matching}
        held = {seq: entry.stored for seq, entry in self._pending.items()} | self._exhausted
        for seq, stored in held.items():
            if seq not in ours and seq not in self._let_go:
                self._release(stored, settled=False)
                self._let_go.add(seq)
            elif seq in ours and seq in self._let_go:
                self._claim(stored)
                self._let_go.discard(seq)

    def offer(self, stored: Stored) -> None:
        """A matching message was stored; ``dispatch`` follows. Its claim was counted by the stream."""
        if stored.seq >= self._start:
            self._queue.append(stored)
        else:
            self._release(stored, settled=True)

    def removed(self, stored: Stored, *, advise: bool) -> None:
        """A message left the stream without being settled here (R5)."""
        seq = stored.seq
        entry = self._pending.get(seq)
        if entry is not None:
            if advise:
                reason = "Unacknowledged message was deleted"
                self._advise("MSG_TERMINATED", "terminated", seq, entry.consumer_seq, entry.deliveries, reason=reason)
            elif entry.first_seq > self._floor.consumer:
                # A purge: the server's floor jumps to what it took, over what is still in hand below.
                self._floor = SequencePair(entry.first_seq, self._floor.stream)
            self._forget(seq)
            self._moved()
        elif seq in self._exhausted:
            del self._exhausted[seq]
            self._redelivered.pop(seq, None)
        elif seq >= self._next_seq and (self._only is None or seq > self._born or seq in self._only):
            self._gone += 1
            self._sweep_queue()

    def purged(self, first_seq: int) -> None:
        """The stream begins at ``first_seq`` now."""
        if self._next_seq < first_seq:
            self._next_seq = first_seq
            self._moved()

    def _sweep_queue(self) -> None:
        queue = self._queue
        while queue and queue[0].gone:
            queue.popleft()
            self._gone -= 1
        if self._gone > 1000 and self._gone > len(queue) // 2:
            self._queue = deque(stored for stored in queue if not stored.gone)
            self._gone = 0

    @property
    def next_seq(self) -> int:
        """What lies below has been delivered, or passed."""
        return self._next_seq

    @property
    def num_pending(self) -> int:
        return len(self._queue) - self._gone

    @property
    def paused(self) -> bool:
        return self._paused_until is not None

    def available(self) -> int:
        """How many messages a pull would get now that nobody else was told of."""
        if self._paused_until is not None:
            return 0
        if self._again:
            self._drop_exhausted()
        return len(self._again_set) + self._new_available() - self.woken

    def _new_available(self) -> int:
        available = max(0, min(len(self._queue) - self._gone, self._room - len(self._pending)))
        return min(available, self._due()) if self._paced and available else available

    def _due(self) -> int:
        """Replay at the publisher's pace: one message, or none yet."""
        head = next(one for one in self._queue if not one.gone)
        if self._passed is None or head.seq > self._born:
            return 1
        delivered_at, stored_at = self._passed
        at = delivered_at + head.time - stored_at
        # A float's last bit must not make the timer miss the message that it was set for.
        if at <= self._clock.monotonic() + 1e-6:
            return 1
        if self._pace_timer is not None:
            self._pace_timer.cancel()
        self._pace_timer = self._clock.call_at(at, self.dispatch)
        return 0

    # -- delivering

    def take(self, limit: int, connection: Connection) -> list[Delivery]:
        """Deliver up to ``limit`` messages: what comes again first, then new ones while acks are not overdue."""
        taken: list[Delivery] = []
        if self._paused_until is not None:
            return taken
        self._last_active = now = self._clock.monotonic()
        while self._again and len(taken) < limit:
            self._drop_exhausted()
            if self._again:
                taken.append(self._redeliver(self._again[0], now, connection))
        queue = self._queue
        room = min(limit - len(taken), self._room - len(self._pending))
        if self._paced:
            room = min(room, self._new_available())
        if room <= 0 or not queue:
            return taken
        deadline = now + self.spec.ack_wait
        number = self._consumer_seq
        while room > 0 and queue:
            stored = queue.popleft()
            if stored.gone:
                self._gone -= 1
                continue
            room -= 1
            number += 1
            waiting = len(queue) - self._gone
            delivery = MemoryDelivery(self, stored, number, number, 1, waiting, deadline, connection)
            self._pending[stored.seq] = delivery
            self._next_seq = stored.seq + 1
            taken.append(delivery)
        self._consumer_seq = number
        if self._paced and taken:
            self._passed = now, taken[-1].time.timestamp()
        if not queue:
            # What lies between here and the end is not for this consumer: it has been passed.
            self._next_seq = max(self.stream.last_seq + 1, self._next_seq)
        if not self._explicit:
            self._settle_at_once()
        elif deadline < self._check_at:
            self._arm(now)
        if self.spec.headers_only:
            for one in taken:
                self._strip(one)
        return taken

    def _redeliver(self, seq: int, now: float, connection: Connection) -> MemoryDelivery:
        self._again.popleft()
        self._again_set.discard(seq)
        before = self._pending[seq]
        times = self._redelivered[seq] = self._redelivered.get(seq, 0) + 1
        self._consumer_seq += 1
        deadline = now + self._wait(times)
        delivery = MemoryDelivery(
            self, before.stored, self._consumer_seq, before.first_seq, times + 1, self.num_pending, deadline, connection
        )
        self._pending[seq] = delivery
        if deadline < self._check_at:
            self._arm(now)
        if self.spec.headers_only:
            self._strip(delivery)
        return delivery

    def _strip(self, delivery: Delivery) -> None:
        delivery.headers = {**delivery.headers, "Nats-Msg-Size": str(len(delivery.data))}
        delivery.data = b""

    def _settle_at_once(self) -> None:
        """Ack none: delivered is settled."""
        delivered, self._pending = self._pending, {}
        for entry in delivered.values():
            self._release(entry.stored, settled=True)
        self._moved()

    def _wait(self, times: int) -> float:
        backoff = self.spec.backoff
        return backoff[min(times, len(backoff) - 1)] if backoff else self.spec.ack_wait

    def peek_size(self) -> int:
        """Bytes that the next delivery takes on the wire, its ack subject included; 0 when there is none."""
        self._drop_exhausted()
        seq = self._again[0] if self._again else None
        stored = (
            self._pending[seq].stored if seq is not None else next((one for one in self._queue if not one.gone), None)
        )
        if stored is None:
            return 0
        times = self._redelivered.get(stored.seq, 0) + 1
        reply = f"$JS.ACK.{self.stream.name}.{self.name}.{times}.{stored.seq}.{self._consumer_seq + 1}."
        headers = sum(len(key) + len(value) + 4 for key, value in stored.headers.items())
        return len(stored.subject) + len(reply) + 19 + 2 + len(stored.data) + (headers + 12 if headers else 0)

    def dispatch(self) -> None:
        """Serve those who wait, one message each in turn (F1), while there is something."""
        waiting = self.waiting
        while waiting and self.available() > 0:
            waiting.popleft().feed(self)

    # -- settling

    def ack(self, seq: int) -> None:
        """Settle one message, or with ack all everything up to it; an unknown sequence is ignored."""
        if self.spec.ack is Ack.ALL:
            for one in [one for one in self._pending if one < seq]:
                self._settled(one)
        self._settled(seq)
        if self.waiting:
            self.dispatch()

    def ack_all(self, deliveries: Sequence[MemoryDelivery]) -> None:
        """``MemoryDelivery.ack`` for each, and one look at who waits."""
        plain = self.spec.ack is not Ack.ALL
        pending, claims_from = self._pending, self._claims_from
        freed: list[Stored] = []
        for delivery in deliveries:
            if delivery.is_settled:
                raise AlreadySettled(f"{delivery.stream}:{delivery.seq} was settled")
            delivery.is_settled = True
            seq = delivery.seq
            first_time = not self._redelivered and not self._again_set and not self._let_go
            if plain and first_time and pending.pop(seq, None) is not None:
                if seq > claims_from:
                    stored = delivery.stored
                    stored.claims -= 1
                    if not stored.claims:
                        freed.append(stored)
            else:
                self.ack(seq)
        if freed:
            self.stream.released(freed, settled=True)
        if not pending:
            self._moved()
        if self.waiting:
            self.dispatch()

    def _settled(self, seq: int) -> None:
        entry = self._pending.pop(seq, None)
        if entry is not None:
            stored = entry.stored
            if not self._pending:
                self._floor = SequencePair(self._consumer_seq, self._next_seq - 1)
        else:
            late = self._exhausted.pop(seq, None)
            if late is None:
                return
            stored = late
        if self._redelivered:
            self._redelivered.pop(seq, None)
            self._again_set.discard(seq)
        # A first delivery that expired waits in _again and is not in _redelivered yet.
        elif self._again_set:
            self._again_set.discard(seq)
        if self._let_go and seq in self._let_go:
            self._let_go.discard(seq)
        elif seq > self._claims_from:
            stored.claims -= 1
            if not stored.claims:
                self.stream.released((stored,), settled=True)

    def nak(self, seq: int, delay: float) -> None:
        entry = self._pending.get(seq)
        if entry is None:
            return
        self._advise("MSG_NAKED", "nak", seq, entry.consumer_seq, entry.deliveries)
        if delay <= 0:
            self._queue_again(seq)
            self.dispatch()
            return
        if seq in self._again_set:
            # Overdue or nak'd before: it is called back, and waits for this.
            self._again_set.discard(seq)
            self._again.remove(seq)
        now = self._clock.monotonic()
        backoff = self.spec.backoff
        skew = self._wait(self._redelivered.get(seq, 0)) - backoff[0] if backoff else 0.0
        entry.deadline = now + delay + skew
        if entry.deadline < self._check_at:
            self._arm(now)

    def in_progress(self, seq: int) -> None:
        entry = self._pending.get(seq)
        if entry is not None:
            entry.deadline = self._clock.monotonic() + self._wait(self._redelivered.get(seq, 0))

    def term(self, seq: int, reason: str, consumer_seq: int, deliveries: int) -> None:
        more = {"reason": reason} if reason else {}
        self._advise("MSG_TERMINATED", "terminated", seq, consumer_seq, deliveries, **more)
        self._settled(seq)
        if self.waiting:
            self.dispatch()

    def _queue_again(self, seq: int) -> None:
        if seq not in self._again_set:
            self._again_set.add(seq)
            self._again.append(seq)

    def _drop_exhausted(self) -> None:
        """Bring to the front of ``_again`` what may be delivered again; the rest had its last delivery (L9)."""
        again, limit = self._again, self.spec.max_deliver
        while again:
            seq = again[0]
            if seq in self._let_go and seq in self._pending and self._pending[seq].stored.gone:
                self._forget(seq)
                self._moved()
            elif seq in self._again_set and seq in self._pending:
                if limit <= 0 or self._redelivered.get(seq, 0) + 1 < limit:
                    return
                self._exhaust(seq)
            again.popleft()
            self._again_set.discard(seq)

    def _exhaust(self, seq: int) -> None:
        entry = self._pending.pop(seq)
        self._exhausted[seq] = entry.stored
        deliveries = self._redelivered.setdefault(seq, 0) + 1
        self._advise("MAX_DELIVERIES", "max_deliver", seq, None, deliveries)
        if not self._pending:
            self._moved()

    def _forget(self, seq: int) -> None:
        self._pending.pop(seq, None)
        self._again_set.discard(seq)
        self._redelivered.pop(seq, None)
        self._let_go.discard(seq)

    def _moved(self) -> None:
        if not self._pending:
            self._floor = SequencePair(self._consumer_seq, self._next_seq - 1)

    def _claim(self, stored: Stored) -> None:
        if stored.seq > self._claims_from:
            stored.claims += 1

    def _release(self, stored: Stored, *, settled: bool) -> None:
        if stored.seq > self._claims_from and not stored.gone:
            stored.claims -= 1
            if not stored.claims:
                self.stream.released((stored,), settled=settled)

    # -- time

    def _arm(self, now: float) -> None:
        """One timer for all: it looks at what is in hand when the earliest of them may be due."""
        deadline = min((entry.deadline for entry in self._pending.values()), default=NEVER)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._check_at = deadline
        if deadline < NEVER:
            self._timer = self._clock.call_at(deadline, self._check)

    def _check(self) -> None:
        now = self._clock.monotonic()
        due = sorted(seq for seq, entry in self._pending.items() if entry.deadline <= now)
        for seq in due:
            if seq in self._again_set:
                self._pending[seq].deadline = NEVER
            elif self.spec.max_deliver == 1:
                self._exhaust(seq)
            else:
                self._pending[seq].deadline = NEVER
                self._queue_again(seq)
        self._timer = None
        self._arm(now)
        self.dispatch()

    def pause(self, until: float | None) -> None:
        """Deliver nothing until this unix time (L14); None resumes."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        left = until - self._clock.time() if until is not None else 0.0
        self._paused_until = until if left > 0 else None
        if self._paused_until is not None:
            self._pause_timer = self._clock.call_at(self._clock.monotonic() + left, lambda: self.pause(None))
        else:
            self.dispatch()

    def touch(self) -> None:
        """Somebody came or went: the inactive threshold counts from now on."""
        self._last_active = self._clock.monotonic()

    def _arm_idle(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self.spec.inactive_threshold > 0:
            due = self._last_active + self.spec.inactive_threshold
            self._idle_timer = self._clock.call_at(due, self._check_idle)

    def _check_idle(self) -> None:
        now = self._clock.monotonic()
        if self.waiting or self.woken or (self.outlet is not None and self.outlet.bound):
            self._last_active = now
        if now - self._last_active >= self.spec.inactive_threshold:
            self.stream.expired(self)
        else:
            self._arm_idle()

    # -- leaving

    def restarted(self) -> None:
        """The server came back. What was to come again at once is only remembered as not acked."""
        self.drop_waiters(PullStatus.DISCONNECTED)
        now = self._clock.monotonic()
        for seq in self._again_set:
            entry = self._pending.get(seq)
            if entry is not None:
                entry.deadline = min(entry.deadline, now + self.spec.ack_wait)
        self._again.clear()
        self._again_set.clear()
        self._arm(now)

    def drop_waiters(self, status: PullStatus) -> None:
        waiting, self.waiting = self.waiting, deque()
        for waiter in waiting:
            waiter.end(status)

    def close(self) -> None:
        """It was deleted: who waits is told, what it held is held no more (R2)."""
        self.deleted = True
        for timer in (self._timer, self._pause_timer, self._pace_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        if self.outlet is not None:
            self.outlet.close()
        self.drop_waiters(PullStatus.CONSUMER_DELETED)
        held = [entry.stored for seq, entry in self._pending.items() if seq not in self._let_go]
        held += [stored for seq, stored in self._exhausted.items() if seq not in self._let_go]
        held += self._queue
        self._pending.clear()
        self._exhausted.clear()
        self._queue.clear()
        for stored in held:
            self._release(stored, settled=False)

    # -- saying

    def info(self) -> ConsumerInfo:
        if self._pending:
            lowest = min(self._pending.values(), key=lambda entry: entry.seq)
            if lowest.first_seq - 1 > self._floor.consumer:
                self._floor = SequencePair(lowest.first_seq - 1, lowest.seq - 1)
        paused = datetime.fromtimestamp(self._paused_until, UTC) if self._paused_until is not None else None
        return ConsumerInfo(
            stream=self.stream.name,
            name=self.name,
            spec=self.spec,
            delivered=SequencePair(self._consumer_seq, self._next_seq - 1),
            ack_floor=self._floor,
            num_pending=self.num_pending,
            num_ack_pending=len(self._pending),
            num_redelivered=len(self._redelivered),
            num_waiting=len(self.waiting) if self.outlet is None else 0,
            bound=self.outlet is not None and self.outlet.bound,
            paused_until=paused,
        )

    def _advise(self, kind: str, word: str, seq: int, consumer_seq: int | None, deliveries: int, **more: str) -> None:
        def body() -> dict[str, Any]:
            numbers = {} if consumer_seq is None else {"consumer_seq": consumer_seq}
            return {
                "type": f"io.nats.jetstream.advisory.v1.{word}",
                "stream": self.stream.name,
                "consumer": self.name,
                **numbers,
                "stream_seq": seq,
                "deliveries": deliveries,
                **more,
            }

        self.stream.advise(kind, self.name, body)
