"""Publishing, as the bus promises it: again under the same id; a bounded window for what need not wait."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from nebengjek.bus.codec import EVENT_TYPE
from nebengjek.bus.errors import ApiError, Disconnected, NoStream, NotPermitted, PublishTimeout
from nebengjek.bus.interface import Broker, ConnectionStatus, Outcome
from nebengjek.bus.messages import Envelope, PubAck
from nebengjek.bus.observing import Observer
from nebengjek.errors import NebengJekError, Unavailable

OnAck = Callable[[Envelope, PubAck | NebengJekError], None]

PUBLISH_TIMEOUT = 5.0
PUBLISH_TRIES = 5

log = structlog.stdlib.get_logger("nebengjek.bus")


class Publishing:
    """Hands envelopes to the broker, in the order in which they were said.

    ``established``: set when there are streams; until then a publish waits. ``spawn``: runs what goes on behind.
    """

    def __init__(
        self,
        broker: Broker,
        observer: Observer,
        established: asyncio.Event,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        window: int,
        audit: bool,
    ) -> None:
        self._broker = broker
        self._observer = observer
        self._established = established
        self._spawn = spawn
        self._window = window
        self._audit = audit
        self._soon: list[tuple[Envelope, OnAck | None]] = []
        self._landed = asyncio.Event()
        self.outstanding = 0
        """What ``send_soon`` took and is neither stored nor refused yet."""

    async def send_soon(self, envelope: Envelope, on_ack: OnAck | None) -> None:
        """Take it into the window; waits when that is full. ``on_ack`` is called exactly once."""
        await self.wait_established()
        if self.outstanding >= self._window:
            await self._until(lambda: self.outstanding < self._window)
        self.outstanding += 1
        if not self._soon:
            asyncio.get_running_loop().call_soon(self.hand_over)
        self._soon.append((envelope, on_ack))

    def hand_over(self) -> None:
        """Give the broker what ``send_soon`` has gathered in this turn of the loop.

        Also called before anything else is said, and before a handler's message is settled, so that order is kept.
        """
        if not self._soon:
            return
        soon, self._soon = self._soon, []
        outcomes = self._broker.submit_all([envelope for envelope, _ in soon])
        stored: Counter[tuple[str, str]] = Counter()
        for (envelope, on_ack), outcome in zip(soon, outcomes, strict=True):
            if isinstance(outcome, PubAck):
                stored[outcome.stream, envelope.headers[EVENT_TYPE]] += 1
                if self._audit:
                    self._log_published(envelope, outcome)
                if on_ack is not None:
                    on_ack(envelope, outcome)
            else:
                self._spawn(self._land(envelope, outcome, on_ack))
        if stored:
            for (stream, event_type), count in stored.items():
                self._observer.published(stream, event_type, count)
            self.outstanding -= stored.total()
            self._landed.set()

    async def _until(self, met: Callable[[], bool]) -> None:
        while not met():
            self._landed.clear()
            await self._landed.wait()

    async def _land(self, envelope: Envelope, outcome: Outcome, on_ack: OnAck | None) -> None:
        try:
            ack = await self.send(envelope, outcome)
        except NebengJekError as error:
            self._not_published(envelope, error, on_ack)
        except asyncio.CancelledError:
            self._not_published(envelope, PublishTimeout("bus"), on_ack)
            raise
        else:
            if on_ack is not None:
                on_ack(envelope, ack)
        finally:
            self.outstanding -= 1
            self._landed.set()

    def _not_published(self, envelope: Envelope, error: NebengJekError, on_ack: OnAck | None) -> None:
        if on_ack is not None:
            on_ack(envelope, error)
        else:
            log.error("message.not_published", subject=envelope.subject, error=str(error))

    @staticmethod
    def _log_published(envelope: Envelope, ack: PubAck) -> None:
        log.debug("message.published", id=envelope.message_id, subject=envelope.subject, seq=ack.seq)

    async def flush(self) -> None:
        """Return when everything that ``send_soon`` took has been stored or refused."""
        self.hand_over()
        await self._until(lambda: self.outstanding == 0)

    async def send(self, envelope: Envelope, outcome: Outcome | None = None) -> PubAck:
        """Wait for the store. ``outcome``: of the first try, if it was made already."""
        await self.wait_established()
        self.hand_over()
        pause = 0.1
        for tries_left in reversed(range(PUBLISH_TRIES)):
            try:
                ack = await _answer_of(outcome or self._broker.submit_all((envelope,))[0])
            except (TimeoutError, Disconnected, PublishTimeout) as error:
                if not tries_left:
                    self._observer.publish_failed("timeout")
                    raise PublishTimeout("bus") from error
                await asyncio.sleep(pause)
                pause *= 2
                outcome = None
                if self._broker.status is not ConnectionStatus.UP:
                    await self._wait_connected()
            except (ApiError, NoStream, NotPermitted) as error:
                code = "not_permitted" if isinstance(error, NotPermitted) else getattr(error, "code", "no_stream")
                self._observer.publish_failed(str(code))
                raise
            else:
                self._observer.published(ack.stream, _type_in(envelope))
                if self._audit:
                    self._log_published(envelope, ack)
                return ack
        raise AssertionError("unreachable")

    async def wait_established(self) -> None:
        """Return when there are streams, consumers and listeners. Raises Unavailable."""
        if self._established.is_set():
            return
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await self._established.wait()
        except TimeoutError as error:
            raise Unavailable("bus") from error

    async def _wait_connected(self) -> None:
        """The server may be back in a moment. Raises PublishTimeout."""
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await self._broker.wait_connected()
        except TimeoutError as error:
            self._observer.publish_failed("timeout")
            raise PublishTimeout("bus") from error


async def _answer_of(outcome: Outcome) -> PubAck:
    if isinstance(outcome, asyncio.Future):
        if outcome.done():
            return outcome.result()
        # As wait_for, which takes another turn of the loop.
        timer = asyncio.get_running_loop().call_later(PUBLISH_TIMEOUT, _too_late, outcome)
        try:
            return await outcome
        finally:
            timer.cancel()
    if isinstance(outcome, NebengJekError):
        raise outcome
    return outcome


def _too_late(outcome: asyncio.Future[PubAck]) -> None:
    if not outcome.done():
        outcome.set_exception(TimeoutError())


def _type_in(envelope: Envelope) -> str:
    return envelope.subject[: envelope.subject.rfind(".")]
