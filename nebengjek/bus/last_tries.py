"""Dead letters of processes that died on a message's last try.

Then nobody is left to say so but the server. Its word is an advisory, a core message: lost if no pod listens at that
moment. So a small stream captures it, and a durable consumer of the module makes the dead letter when a pod that runs
the module is there again: another may not be permitted to read and to end the module's messages.
"""

from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog
from msgspec import Struct

from nebengjek.bus.dead_letters import DeadLetters
from nebengjek.bus.deliveries import Delivery, PullStatus
from nebengjek.bus.errors import ApiError, BusError
from nebengjek.bus.interface import Broker, ConnectionStatus
from nebengjek.bus.specs import ConsumerSpec
from nebengjek.errors import Unavailable

STREAM = "ADVISORY_STREAM"
SUBJECT = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
REASON = "process died on the last try"
BATCH = 64
AGAIN = 5.0
"""Seconds until what could not be stored is tried again."""

log = structlog.stdlib.get_logger("nebengjek.bus.dead_letters")


class _Exhausted(Struct):
    """What the server says; the rest of it does not matter here."""

    stream: str
    consumer: str
    stream_seq: int
    deliveries: int


_decoder = msgspec.json.Decoder(_Exhausted)


def durable_of(module: str) -> str:
    """``dead_letters_match``"""
    return f"dead_letters_{module}".replace(".", "_")


def consumer_of(module: str, hears: Iterable[tuple[str, str]]) -> ConsumerSpec:
    """Of the advisories for its consumers, (stream, name)."""
    filters = tuple(f"{SUBJECT}.{stream}.{consumer}" for stream, consumer in hears)
    return ConsumerSpec(name=durable_of(module), filters=filters, max_deliver=-1)


class LastTries:
    """``ensure``: make the stream and its consumer ``spec`` again."""

    def __init__(
        self,
        broker: Broker,
        dead_letters: DeadLetters,
        spec: ConsumerSpec,
        ensure: Callable[[ConsumerSpec], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._dead_letters = dead_letters
        self._spec = spec
        self._ensure = ensure

    async def run(self) -> None:
        """Until it is cancelled, or the broker is closed. Whatever fails, it goes on."""
        while self._broker.status is not ConnectionStatus.CLOSED:
            try:
                await self._listen()
            except Exception as error:
                log.error("last_tries.failed", exc_info=error)
                await self._broker.sleep(1.0)

    async def _listen(self) -> None:
        assert self._spec.name is not None
        source = await self._broker.consume(STREAM, self._spec.name, prefetch=2 * BATCH)
        pause = 0.0
        try:
            while self._broker.status is not ConnectionStatus.CLOSED:
                batch = await source.next(BATCH)
                await self._handle(batch.messages)
                if batch.status in (PullStatus.NO_CONSUMER, PullStatus.CONSUMER_DELETED):
                    pause = min(max(0.25, pause * 2), 5.0)
                    await self._broker.sleep(pause)
                    await self._ensure(self._spec)
                elif batch.status in (PullStatus.COMPLETE, PullStatus.TIMEOUT):
                    pause = 0.0
                else:
                    await self._broker.sleep(0.05)
        finally:
            await source.close()

    async def _handle(self, deliveries: list[Delivery]) -> None:
        written: dict[tuple[str, str], set[str]] = {}
        for delivery in deliveries:
            try:
                exhausted = _decoder.decode(delivery.data)
            except msgspec.DecodeError as error:
                log.error("advisory.undecodable", seq=delivery.seq, error=str(error))
                await delivery.term("no advisory")
                continue
            try:
                await self._bury(exhausted, written)
            except (BusError, Unavailable) as error:
                log.error(
                    "dead_letter.failed",
                    consumer=exhausted.consumer,
                    stream=exhausted.stream,
                    seq=exhausted.stream_seq,
                    error=str(error),
                )
                await delivery.nak(AGAIN)
            else:
                await delivery.ack()

    async def _bury(self, exhausted: _Exhausted, written: dict[tuple[str, str], set[str]]) -> None:
        """The dead letter first, then the end of the message: on an interest stream it would block all others.

        ``written``: the dead letters that a consumer has, as far as this batch has asked.
        """
        stream, consumer, seq = exhausted.stream, exhausted.consumer, exhausted.stream_seq
        try:
            stored = await self._broker.get_message(stream, seq)
        except ApiError as error:
            if error.status != 404:
                raise
            # Somebody settled it late, or its time was over.
            log.info("message.gone", stream=stream, consumer=consumer, seq=seq)
            return
        if (stream, consumer) not in written:
            written[stream, consumer] = await self._dead_letters.ids(stream, consumer)
        if self._dead_letters.id_of(stored, consumer) not in written[stream, consumer]:
            await self._dead_letters.add(stored, consumer=consumer, deliveries=exhausted.deliveries, reason=REASON)
        try:
            await self._broker.give_up(stream, consumer, seq, REASON)
        except ApiError as error:
            if error.status != 404:
                raise
