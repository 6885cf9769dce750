"""A tap in the line between bus and broker: what passes is noted, and with a deck it is dealt twice and out of order.

Part of the test kit (``nebengjek.bus.testing``). The tap stands where a connection stands, below every policy: codec,
retries, inbox, outbox and dead letters above it are the ones that run in production, and the broker below it is a
real one, in memory or on NATS.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from nebengjek.bus.deliveries import Batch, Consumption, Delivery, PullStatus
from nebengjek.bus.errors import AlreadySettled, Disconnected
from nebengjek.bus.interface import Broker, Outcome
from nebengjek.bus.messages import Envelope, PubAck, StoredMessage
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec
from nebengjek.bus.subjects import subject_matches

PAUSE = 0.001
"""Seconds that the dealer waits before the next card, at most: the more cards wait, the more he deals at once."""


class Traffic:
    """What passed the taps of a probe, and what is still on its way."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, int], StoredMessage] = {}
        """By stream and sequence, in the order of their acknowledgements; not what a stream dropped as a duplicate."""
        self.handled: Counter[str] = Counter()
        """By consumer: messages that it has acknowledged for good."""
        self.owed: set[tuple[str, str, int]] = set()
        """(stream, consumer, sequence) of what was stored and is not settled by a consumer that somebody runs here."""
        self.moves = 0
        """Counts whatever passes: while it stands still, nothing does."""
        self.changed = asyncio.Event()
        self.heard: set[tuple[str, str]] = set()
        """(stream, consumer) that somebody here handles the messages of."""
        self._filters: dict[tuple[str, str], tuple[str, ...]] = {}
        self._settled: set[tuple[str, str, int]] = set()

    def move(self) -> None:
        self.moves += 1
        self.changed.set()

    def knows(self, stream: str, spec: ConsumerSpec) -> None:
        """There is such a consumer."""
        self._filters[stream, spec.name or ""] = spec.filters

    def published(self, envelope: Envelope, outcome: Outcome) -> None:
        self.move()
        if isinstance(outcome, PubAck):
            self._store(envelope, outcome)
        elif isinstance(outcome, asyncio.Future):
            outcome.add_done_callback(lambda answer: self._answered(envelope, answer))

    def _answered(self, envelope: Envelope, answer: asyncio.Future[PubAck]) -> None:
        self.move()
        if not answer.cancelled() and answer.exception() is None:
            self._store(envelope, answer.result())

    def _store(self, envelope: Envelope, ack: PubAck) -> None:
        if (ack.stream, ack.seq) in self.stored:
            return
        # Also a duplicate is stored: the first acknowledgement may have been lost on the way to us.
        self.stored[ack.stream, ack.seq] = StoredMessage(
            stream=ack.stream,
            seq=ack.seq,
            subject=envelope.subject,
            headers=dict(envelope.headers),
            data=envelope.data,
            time=datetime.now(UTC),
        )
        if ack.duplicate:
            # Whoever is to handle it may have done so long ago; the broker knows.
            return
        for (stream, consumer), filters in self._filters.items():
            wanted = stream == ack.stream and any(subject_matches(one, envelope.subject) for one in filters)
            if wanted and (stream, consumer) in self.heard:
                # It may have been handled before its publisher heard that it is stored.
                self.owed |= {(stream, consumer, ack.seq)} - self._settled

    def settled(self, stream: str, consumer: str, seq: int, *, handled: bool = False) -> None:
        """The broker was told that this consumer is done with it."""
        self.move()
        self._settled.add((stream, consumer, seq))
        self.owed.discard((stream, consumer, seq))
        self.handled[consumer] += handled


class Message:
    """One delivery of the broker, and how many copies of it handlers get.

    It is acknowledged when all copies are, as if the acknowledgement of the first had been lost on the way. A copy
    that fails settles it: what becomes of the others does not count then, it comes again or is a dead letter.
    """

    def __init__(self, delivery: Delivery, copies: int, traffic: Traffic) -> None:
        self.delivery = delivery
        self.over = False
        self._unacked = copies
        self._traffic = traffic

    def acked(self) -> bool:
        """One copy more is; True when that was the last one."""
        self._unacked -= 1
        return self.end(handled=True) if not self._unacked else False

    def end(self, *, handled: bool = False, settled: bool = True) -> bool:
        """False: it was over already."""
        if self.over:
            return False
        self.over = True
        if settled:
            given = self.delivery
            self._traffic.settled(given.stream, given.consumer, given.seq, handled=handled)
        else:
            self._traffic.move()
        return True


class Copy(Delivery):
    """What a handler gets of a message."""

    __slots__ = ("message",)

    def __init__(self, message: Message) -> None:
        self.message = message
        self.is_settled = False
        given = message.delivery
        self.stream, self.consumer, self.subject = given.stream, given.consumer, given.subject
        self.headers, self.data = given.headers, given.data
        self.seq, self.consumer_seq = given.seq, given.consumer_seq
        self.deliveries, self.pending = given.deliveries, given.pending

    @property
    def time(self) -> datetime:
        return self.message.delivery.time

    def settle(self) -> None:
        """Once only: raises AlreadySettled."""
        if self.is_settled:
            raise AlreadySettled(f"{self.stream}:{self.seq} was settled")
        self.is_settled = True

    async def ack(self) -> None:
        self.settle()
        if self.message.acked():
            await self.message.delivery.ack()

    async def ack_sync(self, timeout: float = 5.0) -> None:
        self.settle()
        if self.message.acked():
            await self.message.delivery.ack_sync(timeout)

    async def nak(self, delay: float = 0.0) -> None:
        self.settle()
        if self.message.end(settled=False):
            await self.message.delivery.nak(delay)

    async def in_progress(self) -> None:
        if self.is_settled:
            raise AlreadySettled(f"{self.stream}:{self.seq} was settled")
        if not self.message.over:
            await self.message.delivery.in_progress()

    async def term(self, reason: str = "") -> None:
        self.settle()
        if self.message.end():
            await self.message.delivery.term(reason)


class Deck:
    """Copies wait here and are dealt one by one, any of them next: across subjects, consumers and pods."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._cards: list[tuple[ShuffledSource, Copy]] = []
        self._dealer: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._cards)

    def put(self, source: "ShuffledSource", copies: Sequence[Copy]) -> None:
        self._cards += [(source, copy) for copy in copies]
        if self._dealer is None or self._dealer.done():
            self._dealer = asyncio.create_task(self._deal(), name="dealer")

    def withdraw(self, source: "ShuffledSource") -> list[Copy]:
        """What would still have gone to ``source``."""
        withdrawn = [copy for target, copy in self._cards if target is source]
        self._cards = [card for card in self._cards if card[0] is not source]
        return withdrawn

    async def _deal(self) -> None:
        while self._cards:
            await asyncio.sleep(self._random.uniform(0, PAUSE))
            for _ in range(min(1 + len(self._cards) // 8, len(self._cards))):
                chosen = self._random.randrange(len(self._cards))
                self._cards[chosen], self._cards[-1] = self._cards[-1], self._cards[chosen]
                source, copy = self._cards.pop()
                source.take(copy)


class Source(Consumption):
    """A consumer's deliveries, one copy each, as they come."""

    copies = 1

    def __init__(self, behind: Consumption, traffic: Traffic) -> None:
        self.behind = behind
        self._traffic = traffic

    async def next(self, limit: int) -> Batch:
        batch = await self.behind.next(limit)
        return Batch(list(self.copied(batch)), batch.status)

    def copied(self, batch: Batch) -> list[Copy]:
        messages = [Message(delivery, self.copies, self._traffic) for delivery in batch.messages]
        if messages:
            self._traffic.move()
        return [Copy(message) for message in messages for _ in range(self.copies)]

    async def close(self) -> None:
        self.is_closed = True
        await self.behind.close()

    @property
    def last_pull(self) -> float:
        return self.behind.last_pull


class ShuffledSource(Source):
    """A consumer's deliveries, two copies each, when the deck deals them."""

    copies = 2

    def __init__(self, behind: Consumption, traffic: Traffic, deck: Deck) -> None:
        super().__init__(behind, traffic)
        self._deck = deck
        self._dealt: deque[Copy] = deque()
        self._ends: deque[Batch | BaseException] = deque()
        self._pulling: asyncio.Task[Batch] | None = None
        self._held = 0
        self._news = asyncio.Event()

    def take(self, copy: Copy) -> None:
        """The deck deals it."""
        self._held -= 1
        if not copy.message.over:
            self._dealt.append(copy)
        self._news.set()

    async def next(self, limit: int) -> Batch:
        while True:
            if self._dealt:
                count = min(limit, len(self._dealt))
                return Batch([self._dealt.popleft() for _ in range(count)], PullStatus.COMPLETE)
            if self._ends:
                end = self._ends.popleft()
                if isinstance(end, BaseException):
                    raise end
                return end
            if self.is_closed:
                return Batch([], PullStatus.DISCONNECTED)
            if self._pulling is None and self._held < limit:
                # It goes on when whoever waits for us is interrupted: what it brings is not lost.
                self._pulling = asyncio.create_task(self.behind.next(limit))
                self._pulling.add_done_callback(self._pulled)
            self._news.clear()
            await self._news.wait()

    def _pulled(self, pull: asyncio.Task[Batch]) -> None:
        self._pulling = None
        self._news.set()
        if pull.cancelled():
            return
        error = pull.exception()
        if error is not None:
            self._ends.append(error)
        elif pull.result().messages:
            copies = self.copied(pull.result())
            self._held += len(copies)
            self._deck.put(self, copies)
        else:
            self._ends.append(pull.result())

    async def close(self) -> None:
        """What was not handed out goes back."""
        self.is_closed = True
        self._news.set()
        if self._pulling is not None:
            self._pulling.cancel()
            await asyncio.wait((self._pulling,))
        held = [*self._deck.withdraw(self), *self._dealt]
        self._dealt.clear()
        with suppress(Disconnected):
            for copy in held:
                await copy.nak()
        await super().close()


class Tap:
    """A connection to a broker whose traffic is noted; all that is not named here goes straight to the broker."""

    def __init__(self, behind: Broker, traffic: Traffic, deck: Deck | None) -> None:
        self._behind = behind
        self._traffic = traffic
        self._deck = deck

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    # The port makes these of ``submit_all``.
    submit = Broker.submit
    publish = Broker.publish

    def submit_all(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        outcomes = self._behind.submit_all(envelopes)
        for envelope, outcome in zip(envelopes, outcomes, strict=True):
            self._traffic.published(envelope, outcome)
        return outcomes

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        self._traffic.knows(stream, spec)
        return await self._behind.ensure_consumer(stream, spec)

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        self._traffic.heard.add((stream, consumer))
        behind = await self._behind.consume(stream, consumer, prefetch=prefetch, expires=expires)
        if self._deck is None:
            return Source(behind, self._traffic)
        return ShuffledSource(behind, self._traffic, self._deck)

    async def give_up(self, stream: str, consumer: str, seq: int, reason: str = "") -> None:
        await self._behind.give_up(stream, consumer, seq, reason)
        self._traffic.settled(stream, consumer, seq)

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        done: list[Delivery] = []
        for copy in deliveries:
            assert isinstance(copy, Copy)
            copy.settle()
            if copy.message.acked():
                done.append(copy.message.delivery)
        await self._behind.ack_all(done)
