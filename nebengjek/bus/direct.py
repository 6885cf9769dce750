"""Words between pods outside every stream: typed, sealed where there is a key, at most once.

What anybody publishes there in plain JSON is read too: the subject is enough.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from nebengjek.bus.handling import Listening, contained
from nebengjek.bus.interface import Broker, Subscription
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.payloads import CONTENT_ENCODING, Payloads, Unreadable
from nebengjek.bus.tracing import CORRELATION_ID, TRACEPARENT, current, enter, from_headers, leave
from nebengjek.contracts.message import token, uuid7
from nebengjek.errors import Invalid, Unavailable

T = TypeVar("T")

log = structlog.stdlib.get_logger("nebengjek.bus")

_encode = msgspec.json.Encoder().encode


class Direct:
    """``tell`` whoever listens now, ``ask`` one of them, and ``listen`` for a module."""

    def __init__(
        self,
        broker: Broker,
        payloads: Payloads,
        established: Callable[[], Awaitable[None]],
        *,
        pod_id: str,
    ) -> None:
        self._broker = broker
        self._payloads = payloads
        self._established = established
        self._pod_id = pod_id

    async def tell(self, subject: str, value: Any, *, sensitive: bool = True) -> None:
        """Publish ``value``; nobody says whether it was heard. Raises Unavailable, InvalidSubject, NotPermitted."""
        await self._established()
        data, headers = self._wrapped(subject, value, sensitive=sensitive)
        await self._broker.core_publish(subject, data, headers)

    async def ask(self, subject: str, value: Any, kind: type[T], *, timeout: float) -> T:
        """The answer of whoever listens there first; ``value`` None asks with an empty body.

        Raises NoResponders, RequestTimeout, Unavailable; Invalid for an answer of another shape.
        """
        await self._established()
        data, headers = (b"", None) if value is None else self._wrapped(subject, value, sensitive=False)
        reply = await self._broker.request(subject, data, headers, timeout=timeout)
        try:
            return msgspec.json.decode(reply.data, type=kind)
        except msgspec.DecodeError as error:
            raise Invalid(f"the answer on {subject} is no {kind.__name__}: {error}") from error

    def _wrapped(self, subject: str, value: Any, *, sensitive: bool) -> tuple[bytes, dict[str, str] | None]:
        data, encoding = self._payloads.wrap(_encode(value), subject, seal=sensitive and self._payloads.seals)
        headers = {CONTENT_ENCODING: encoding} if encoding else {}
        if (trace := current()) is not None:
            headers |= {CORRELATION_ID: trace.correlation_id, TRACEPARENT: trace.traceparent}
        return data, headers or None

    async def listen(self, listening: Listening) -> Subscription:
        """Hear it from now on. What cannot be read, and what a handler raises, is logged: nobody says it again."""

        async def received(message: CoreMessage) -> None:
            trace = enter(from_headers(message.headers, uuid7()))
            try:
                data, encoding = message.data, message.headers.get(CONTENT_ENCODING)
                if encoding is not None:
                    data = self._payloads.unwrap(data, message.subject, encoding)
                answer = await contained(listening.handler(listening.read(data)))
                if message.reply and answer is not None:
                    await self._broker.core_publish(message.reply, _encode(answer))
            except (Unreadable, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                log.warning("listen.undecodable", subject=listening.subject, error=str(error))
            except Unavailable as error:
                log.warning("listen.unavailable", subject=listening.subject, dependency=error.dependency)
            except Exception as error:
                log.error("listen.failed", subject=listening.subject, exc_info=error)
            finally:
                leave(trace)

        return await self._broker.subscribe(heard(listening.subject, self._pod_id), received)


def heard(subject: str, pod_id: str) -> str:
    """The filter of a subject with names: the pod's own id, and any one token for each other."""
    return re.sub(r"{\w+}", "*", subject.replace("{pod_id}", token(pod_id)))
