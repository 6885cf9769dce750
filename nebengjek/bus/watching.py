"""Watching: every pod hears of an event as it passes, at most once, and nothing is stored for it."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from nebengjek.bus.codec import ONLY_FOR, Codec, Undecodable
from nebengjek.bus.handling import Watching, contained
from nebengjek.bus.interface import Broker, Subscription
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.tracing import enter, from_headers, leave
from nebengjek.contracts.message import Event, type_of, uuid7

log = structlog.stdlib.get_logger("nebengjek.bus")


class Watchers:
    """``spawn``: runs a handler behind."""

    def __init__(self, broker: Broker, codec: Codec, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._broker = broker
        self._codec = codec
        self._spawn = spawn

    async def listen(self, watching: Watching) -> Subscription:
        async def received(message: CoreMessage) -> None:
            if ONLY_FOR in message.headers:
                # A replayed dead letter: it was seen when it was said.
                return
            try:
                event = self._codec.decode(message, watching.event)
            except Undecodable as error:
                log.warning("watch.undecodable", subject=message.subject, error=str(error))
                return
            self._spawn(self._watched(watching, event, message.headers))

        subject = f"{type_of(watching.event)}.*"
        return await self._broker.subscribe(subject, received)

    async def _watched(self, watching: Watching, event: Event, headers: Mapping[str, str]) -> None:
        token = enter(from_headers(headers, uuid7()))
        try:
            await contained(watching.handler(event))
        except Exception as error:
            log.error("watch.failed", event_type=type_of(event), exc_info=error)
        finally:
            leave(token)
