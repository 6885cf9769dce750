"""A stream of the memory broker: what it stores, for how long, and who has a claim on it (rules P, D, R).

One file over 300 lines, because storing, limits and claims change the same counters in one step.
"""

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from nebengjek.bus.checks import (
    any_collide,
    check_consumer_change,
    check_stream_change,
)
from nebengjek.bus.errors import ApiError, PublishRefused
from nebengjek.bus.memory.clock import BrokerClock, Timer
from nebengjek.bus.memory.consumer import MemoryConsumer, StreamSide
from nebengjek.bus.memory.core import CoreRouter
from nebengjek.bus.memory.delivery import Stored
from nebengjek.bus.memory.push import Pusher
from nebengjek.bus.memory.quota import Quota
from nebengjek.bus.memory.subjects import SubjectTable
from nebengjek.bus.messages import (
    EXPECTED_LAST_MSG_ID,
    EXPECTED_LAST_SEQ,
    EXPECTED_LAST_SUBJECT_SEQ,
    EXPECTED_STREAM,
    MSG_ID,
    Envelope,
    PubAck,
    StoredMessage,
)
from nebengjek.bus.specs import Ack, ConsumerSpec, Deliver, Discard, Retention, Storage, StreamInfo, StreamSpec
from nebengjek.bus.subjects import subject_matches
from nebengjek.bus.times import rfc3339

Advise = Callable[[str, Callable[[], dict[str, Any]]], None]
_UNLIMITED = 1 << 60
ID_SLICE = 0.001
"""Seconds of message ids that are forgotten together, when the last of them is old enough."""


class _Ids(Struct):
    """Message ids of one slice of time: an entry for each would cost more than the id."""

    since: float
    until: float
    ids: list[str]


class MemoryStream(StreamSide):
    """Messages by sequence. Removing one costs the same wherever it lies; the first sequence only moves up."""

    def __init__(
        self, spec: StreamSpec, clock: BrokerClock, advise: Advise, core: CoreRouter, quota: Quota | None
    ) -> None:
        self.name = spec.name
        self.spec = spec
        self.clock = clock
        self.last_seq = 0
        self.consumers: dict[str, MemoryConsumer] = {}
        self._advise = advise
        self._core = core
        self._quota = quota
        self._messages: dict[int, Stored] = {}
        self._first_seq = 1
        self._bytes = 0
        self.takers: SubjectTable[MemoryConsumer] = SubjectTable()
        self._ids: dict[str, int] = {}
        self._id_ages: deque[_Ids] = deque()
        self._last_id = ""
        self._of_subject: dict[str, dict[int, None]] = {}
        self._age_timer: Timer | None = None
        self._configure()

    def _configure(self) -> None:
        spec = self.spec
        self._max_msgs = spec.max_msgs if spec.max_msgs > 0 else _UNLIMITED
        self._max_bytes = spec.max_bytes if spec.max_bytes > 0 else _UNLIMITED
        self._max_size = spec.max_msg_size if spec.max_msg_size >= 0 else _UNLIMITED
        self._refuses = spec.discard is Discard.NEW
        self._window = spec.duplicate_window
        self._overhead = 16 if spec.storage is Storage.MEMORY else 30
        self._interest = spec.retention is Retention.INTEREST
        self._removes = spec.retention is not Retention.LIMITS
        self._per_subject = spec.max_msgs_per_subject
        if self._per_subject > 0 and not self._of_subject:
            for stored in self._messages.values():
                self._of_subject.setdefault(stored.subject, {})[stored.seq] = None

    def update(self, spec: StreamSpec) -> None:
        """Raises ApiError 10052 for what cannot be changed; new limits apply at once."""
        check_stream_change(self.spec, spec)
        self.spec = spec
        self._configure()
        for subject in [one for one, seqs in self._of_subject.items() if len(seqs) > self._per_subject > 0]:
            self._shrink_subject(subject)
        self._shrink()
        self._arm_age()

    # -- storing

    def publish(self, envelope: Envelope, takers: tuple[MemoryConsumer, ...], now: float) -> PubAck:
        """Store it, in the order of checks of rule P2; ``takers``: what ``takers.match`` says of its subject.

        Raises PublishRefused 10002, 10054, 10060, 10070, 10071, 10077.
        """
        subject, data, headers = envelope.subject, envelope.data, envelope.headers
        header_bytes = envelope.header_bytes
        message_id = ""
        if header_bytes:
            if EXPECTED_STREAM in headers or EXPECTED_LAST_SEQ in headers or EXPECTED_LAST_SUBJECT_SEQ in headers:
                self._check_expected(subject, headers)
            message_id = headers.get(MSG_ID, "")
            if message_id:
                ages = self._id_ages
                if ages and ages[0].until <= now - self._window:
                    self._forget_ids(now)
                known = self._ids.get(message_id)
                if known is not None:
                    return PubAck(self.name, known, True)
            if EXPECTED_LAST_MSG_ID in headers and headers[EXPECTED_LAST_MSG_ID] not in ("", self._last_id):
                raise PublishRefused(10070, "wrong last msg ID")
        size = header_bytes + len(data)
        if size > self._max_size:
            raise PublishRefused(10054, "message size exceeds maximum allowed")
        size += len(subject) + self._overhead + (4 if header_bytes and self._overhead == 30 else 0)
        if self._quota is not None:
            self._quota.check_room(self.spec.storage, size)
        seq = self.last_seq + 1
        if takers or not self._interest:
            if self._refuses:
                self._check_room(subject, size)
            self.last_seq = seq
            self._store(Stored(seq, subject, headers, data, now, size, len(takers)), takers)
        else:
            self.last_seq = seq
            if not self._messages:
                self._first_seq = seq + 1
        if message_id:
            self._ids[message_id] = seq
            if self._id_ages and now - self._id_ages[-1].since < ID_SLICE:
                self._id_ages[-1].ids.append(message_id)
                self._id_ages[-1].until = now
            else:
                self._id_ages.append(_Ids(now, now, [message_id]))
        self._last_id = message_id
        return PubAck(self.name, seq)

    def _store(self, stored: Stored, takers: tuple[MemoryConsumer, ...]) -> None:
        if not self._messages:
            self._first_seq = stored.seq
        self._messages[stored.seq] = stored
        self._bytes += stored.size
        if self._age_timer is None and self.spec.max_age > 0:
            self._arm_age()
        if self._per_subject > 0:
            self._of_subject.setdefault(stored.subject, {})[stored.seq] = None
        for consumer in takers:
            consumer.offer(stored)
        if self._per_subject > 0:
            self._shrink_subject(stored.subject)
        if len(self._messages) > self._max_msgs or self._bytes > self._max_bytes:
            self._shrink()
        for consumer in takers:
            if consumer.waiting:
                consumer.dispatch()

    def _check_expected(self, subject: str, headers: Mapping[str, str]) -> None:
        """An empty expectation is none; one that is no number is never met."""
        if headers.get(EXPECTED_STREAM) not in (None, "", self.name):
            raise PublishRefused(10060, "expected stream does not match")
        if wanted := headers.get(EXPECTED_LAST_SUBJECT_SEQ):
            last = self._last_of(subject)
            self._check_last(wanted, last.seq if last else 0)
        if wanted := headers.get(EXPECTED_LAST_SEQ):
            self._check_last(wanted, self.last_seq)

    def _check_last(self, wanted: str, last: int) -> None:
        if not wanted.isdecimal() or int(wanted) != last:
            raise PublishRefused(10071, f"wrong last sequence: {last}")

    def _check_room(self, subject: str, size: int) -> None:
        """Discard new (P3): a subject at its own limit makes room for itself, unless that is refused too."""
        mine = self._of_subject.get(subject)
        replaces = mine is not None and len(mine) >= self._per_subject > 0
        if replaces and self.spec.discard_new_per_subject:
            raise PublishRefused(10077, "maximum messages per subject exceeded", status=503)
        if len(self._messages) >= self._max_msgs and not replaces:
            raise PublishRefused(10077, "maximum messages exceeded", status=503)
        freed = self._messages[next(iter(mine))].size if mine and replaces else 0
        if self._bytes - freed + size > self._max_bytes:
            raise PublishRefused(10077, "maximum bytes exceeded", status=503)

    def _forget_ids(self, now: float) -> None:
        ages, oldest = self._id_ages, now - self._window
        while ages and ages[0].until <= oldest:
            for message_id in ages.popleft().ids:
                del self._ids[message_id]

    # -- removing

    def remove(self, stored: Stored, *, advise: bool = True) -> None:
        """Remove a message that somebody may still have in hand (eviction, age, delete, purge)."""
        self._drop(stored)
        for consumer in self.takers.match(stored.subject):
            consumer.removed(stored, advise=advise)
        stored.wake()

    def _drop(self, stored: Stored) -> None:
        stored.gone = True
        del self._messages[stored.seq]
        self._bytes -= stored.size
        if self._per_subject > 0:
            of_subject = self._of_subject[stored.subject]
            del of_subject[stored.seq]
            if not of_subject:
                del self._of_subject[stored.subject]
        if stored.seq == self._first_seq:
            self._advance()

    def _advance(self) -> None:
        messages, first, end = self._messages, self._first_seq + 1, self.last_seq + 1
        if not messages:
            first = end
        while first < end and first not in messages:
            first += 1
        self._first_seq = first

    def _shrink(self) -> None:
        while self._messages and (len(self._messages) > self._max_msgs or self._bytes > self._max_bytes):
            self.remove(self._messages[self._first_seq])

    def _shrink_subject(self, subject: str) -> None:
        seqs = self._of_subject.get(subject, {})
        for seq in list(seqs)[: max(0, len(seqs) - self._per_subject)]:
            self.remove(self._messages[seq])

    def _arm_age(self) -> None:
        if self._age_timer is not None:
            self._age_timer.cancel()
            self._age_timer = None
        head = self._messages.get(self._first_seq)
        if self.spec.max_age > 0 and head is not None:
            left = head.time + self.spec.max_age - self.clock.time()
            self._age_timer = self.clock.call_at(self.clock.monotonic() + max(left, 0.001), self._remove_aged)

    def _remove_aged(self) -> None:
        self._age_timer = None
        oldest = self.clock.time() - self.spec.max_age
        # A float's last bit must not make the timer miss the message that it was set for.
        while (head := self._messages.get(self._first_seq)) is not None and head.time <= oldest + 1e-6:
            self.remove(head)
        self._arm_age()

    def purge(self, subject: str | None, keep: int | None, up_to: int | None) -> int:
        """Raises ApiError 10003 for ``keep`` with ``up_to``."""
        if keep is not None and up_to is not None:
            raise ApiError(10003, "keep and sequence exclude each other")
        chosen = [one for one in self._messages.values() if subject is None or subject_matches(subject, one.subject)]
        if up_to is not None:
            chosen = [one for one in chosen if one.seq < up_to]
        elif keep:
            chosen = chosen[:-keep]
        for stored in chosen:
            self.remove(stored, advise=False)
        if up_to is not None and subject is None and up_to > self.last_seq + 1:
            # Asked to forget what is still to come, the server skips those numbers.
            self.last_seq, self._first_seq = up_to - 1, up_to
        for consumer in self.consumers.values():
            consumer.purged(self._first_seq)
        return len(chosen)

    def delete(self, seq: int) -> None:
        """Raises ApiError 10043, 10057."""
        stored = self._messages.get(seq)
        if stored is None:
            first = self._first_seq if self._messages else self.last_seq + 1
            if self.spec.storage is Storage.FILE and not first <= seq <= self.last_seq:
                raise ApiError(10057, f"{seq} lies outside of the stream", status=500)
            raise ApiError(10043, f"sequence {seq} not found")
        self.remove(stored)

    # -- reading

    def get(self, seq: int | None, last_by_subject: str | None) -> StoredMessage:
        """Raises ApiError 10037."""
        stored = self._messages.get(seq or 0) if last_by_subject is None else self._last_of(last_by_subject)
        if stored is None:
            raise ApiError(10037, "no message found", status=404)
        return StoredMessage(
            stream=self.name,
            seq=stored.seq,
            subject=stored.subject,
            headers=dict(stored.headers),
            data=stored.data,
            time=datetime.fromtimestamp(stored.time, UTC),
        )

    def find(self, seq: int) -> Stored | None:
        return self._messages.get(seq)

    def _last_of(self, subject: str) -> Stored | None:
        if subject == ">":
            # The server looks at its last sequence only, whether that is still there or not.
            return self._messages.get(self.last_seq)
        for seq in range(self.last_seq, self._first_seq - 1, -1):
            stored = self._messages.get(seq)
            if stored is not None and subject_matches(subject, stored.subject):
                return stored
        return None

    def stored_from(self, seq: int) -> Iterator[Stored]:
        return (stored for stored in self._messages.values() if stored.seq >= seq)

    def info(self) -> StreamInfo:
        first = self._first_seq if self._messages else self.last_seq + 1
        return StreamInfo(
            spec=self.spec,
            messages=len(self._messages),
            bytes=self._bytes,
            first_seq=first,
            last_seq=self.last_seq,
            consumers=len(self.consumers),
            deleted=self.last_seq - first + 1 - len(self._messages) if self._messages else 0,
        )

    # -- claims

    def released(self, freed: Sequence[Stored], *, settled: bool) -> None:
        if (settled and self._removes) or self._interest:
            for stored in freed:
                self._drop(stored)
        for stored in freed:
            if stored.waiters is not None:
                stored.wake()

    def advise(self, kind: str, consumer: str, body: Callable[[], dict[str, Any]]) -> None:
        self._advise(f"CONSUMER.{kind}.{self.name}.{consumer}", body)

    def _advise_action(self, consumer: str, kind: str, action: str) -> None:
        named = {"stream": self.name, "consumer": consumer, "action": action}
        self.advise(kind, consumer, lambda: {"type": "io.nats.jetstream.advisory.v1.consumer_action"} | named)

    # -- consumers

    def create_consumer(self, spec: ConsumerSpec) -> MemoryConsumer:
        """``spec`` was checked. Raises ApiError 10148 (exists, other config), 10026, 10084, 10098-10101."""
        existing = self.consumers.get(spec.name) if spec.name is not None else None
        if existing is not None:
            if existing.spec != spec:
                raise ApiError(10148, "the consumer exists with another config")
            return existing
        if 0 < self.spec.max_consumers <= len(self.consumers):
            raise ApiError(10026, "maximum consumers limit reached")
        if self._quota is not None:
            self._quota.check_consumers(len(self.consumers))
        self._check_cycle(spec)
        self._check_work_queue(spec, None)
        claims_from = 0 if self._removes else self.last_seq
        consumer = MemoryConsumer(self, spec.name or secrets.token_hex(4), spec, claims_from=claims_from)
        consumer.begin(self._matching(spec))
        self.consumers[consumer.name] = consumer
        self._enter(consumer)
        if spec.push is not None:
            consumer.outlet = Pusher(consumer, spec.push, self._core, self.clock)
            consumer.outlet.look()
        self._advise_action(consumer.name, "CREATED", "create")
        return consumer

    def update_consumer(self, spec: ConsumerSpec) -> MemoryConsumer:
        """``spec`` was checked. Raises ApiError 10149 (unknown), 10012 (what cannot be changed), 10099, 10100."""
        consumer = self.consumers.get(spec.name) if spec.name is not None else None
        if consumer is None:
            raise ApiError(10149, "the consumer does not exist")
        check_consumer_change(consumer.spec, spec)
        self._check_cycle(spec)
        old, new = consumer.spec.push, spec.push
        if old is not None and new is not None and old.subject != new.subject and self._core.listened(old.subject):
            raise ApiError(10013, "somebody listens to what this consumer delivers")
        self._check_work_queue(spec, consumer)
        self.takers.remove(consumer)
        matching = self._matching(spec)
        consumer.refilter(spec, matching)
        if self._interest:
            consumer.claim_only(matching)
        self._enter(consumer)
        return consumer

    def _check_cycle(self, spec: ConsumerSpec) -> None:
        push = spec.push
        if push is not None and any(subject_matches(pattern, push.subject) for pattern in self.spec.subjects):
            raise ApiError(10081, "what is delivered would be stored again")

    def _matching(self, spec: ConsumerSpec) -> list[Stored]:
        if not spec.filters:
            return list(self._messages.values())
        return [one for one in self._messages.values() if any(subject_matches(f, one.subject) for f in spec.filters)]

    def _enter(self, consumer: MemoryConsumer) -> None:
        for pattern in consumer.spec.filters or (">",):
            self.takers.add(pattern, consumer)

    def _check_work_queue(self, spec: ConsumerSpec, existing: MemoryConsumer | None) -> None:
        if self.spec.retention is not Retention.WORKQUEUE:
            return
        if spec.ack is Ack.NONE and spec.push is None:
            raise ApiError(10084, "a work queue needs explicit acks")
        if spec.ack is not Ack.EXPLICIT:
            raise ApiError(10098, "a work queue needs explicit acks")
        if spec.deliver is not Deliver.ALL:
            raise ApiError(10101, "a work queue delivers all")
        for other in self.consumers.values():
            if other is existing:
                continue
            if not spec.filters:
                raise ApiError(10099, "an unfiltered consumer is alone on a work queue")
            if any_collide(spec.filters, other.spec.filters):
                raise ApiError(10100, "filters of work queue consumers overlap")

    def delete_consumer(self, name: str) -> None:
        """Raises ApiError 10014."""
        if name not in self.consumers:
            raise ApiError(10014, "consumer not found", status=404)
        self._remove_consumer(name)
        self._advise_action(name, "DELETED", "delete")

    def _remove_consumer(self, name: str) -> None:
        consumer = self.consumers.pop(name)
        self.takers.remove(consumer)
        consumer.close()

    def pause_consumer(self, name: str, until: datetime | None) -> None:
        """Raises ApiError 10014."""
        consumer = self.consumers.get(name)
        if consumer is None:
            raise ApiError(10014, "consumer not found", status=404)
        consumer.pause(until.timestamp() if until is not None else None)
        named = {"stream": self.name, "consumer": name, "paused": consumer.paused}
        moment = rfc3339(until) if until is not None else "0001-01-01T00:00:00Z"
        kind = "io.nats.jetstream.advisory.v1.consumer_pause"
        self.advise("PAUSE", name, lambda: {"type": kind, "pause_until": moment} | named)

    def expired(self, consumer: MemoryConsumer) -> None:
        if self.consumers.get(consumer.name) is consumer:
            self.delete_consumer(consumer.name)

    # -- leaving

    def close(self) -> None:
        """It was deleted, or was in memory when the server ended."""
        for name in list(self.consumers):
            self._remove_consumer(name)
        if self._age_timer is not None:
            self._age_timer.cancel()
        for stored in self._messages.values():
            stored.gone = True
            stored.wake()
        self._messages.clear()

    def restarted(self) -> None:
        """The server came back: pulls are gone, ids are remembered only of what is still stored (D4)."""
        for consumer in list(self.consumers.values()):
            consumer.restarted()
            if consumer.spec.in_memory:
                self._remove_consumer(consumer.name)
        oldest = self.clock.time() - self.spec.duplicate_window
        recent = [one for one in self._messages.values() if one.time > oldest and one.headers.get(MSG_ID)]
        self._ids = {one.headers[MSG_ID]: one.seq for one in recent}
        self._id_ages = deque(_Ids(one.time, one.time, [one.headers[MSG_ID]]) for one in recent)
