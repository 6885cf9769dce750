"""Queries: a module asks, another answers; how an error crosses over from the one to the other."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from nebengjek.bus.codec import Codec, Undecodable
from nebengjek.bus.errors import BusError
from nebengjek.bus.handling import Answering, contained
from nebengjek.bus.interface import Broker, Subscription
from nebengjek.bus.messages import CoreMessage, header_text
from nebengjek.bus.tracing import CORRELATION_ID, TRACEPARENT, current, enter, from_headers, leave, new_trace
from nebengjek.contracts.message import Query, answer_type, rpc_subject, type_of, uuid7
from nebengjek.errors import Invalid, Rejected, Unavailable, describe, restore

A = TypeVar("A")

ERROR_KIND, ERROR_CODE, ERROR_TEXT = "Error-Kind", "Error-Code", "Error-Text"

log = structlog.stdlib.get_logger("nebengjek.bus")


class RemoteError(BusError):
    """A query's handler failed in a way that is in no branch of the error tree.

    ``code``: INTERNAL, or UNDECODABLE when it answered something else than was asked for.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Queries:
    """Both sides of a query. ``spawn``: runs an answer behind."""

    def __init__(self, broker: Broker, codec: Codec, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._broker = broker
        self._codec = codec
        self._spawn = spawn

    async def ask(self, query: Query[A], timeout: float = 5.0) -> A:
        """Raises what the handler raised, NoResponders, RequestTimeout, RemoteError."""
        trace = current() or new_trace()
        headers = {CORRELATION_ID: trace.correlation_id, TRACEPARENT: trace.traceparent}
        reply = await self._broker.request(rpc_subject(query), self._codec.encode(query), headers, timeout=timeout)
        kind = reply.headers.get(ERROR_KIND)
        if kind == "Internal":
            raise RemoteError("INTERNAL", reply.headers.get(ERROR_TEXT, ""))
        if kind is not None:
            raise restore(kind, reply.headers.get(ERROR_CODE, ""), reply.headers.get(ERROR_TEXT, ""))
        try:
            answer: A = self._codec.decode_any(reply.data, answer_type(type(query)))
        except Undecodable as error:
            raise RemoteError("UNDECODABLE", str(error)) from error
        return answer

    async def serve(self, module: str, answering: Answering) -> Subscription:
        """Each question goes to one pod of those that run the module."""

        async def received(message: CoreMessage) -> None:
            # One task each: a slow answer must not hold up the next question.
            self._spawn(self._answer(answering, message))

        subject = rpc_subject(answering.query)
        return await self._broker.subscribe(subject, received, queue=module)

    async def _answer(self, answering: Answering, message: CoreMessage) -> None:
        token = enter(from_headers(message.headers, uuid7()))
        headers: dict[str, str] = {}
        data = b""
        try:
            query = self._codec.decode_any(message.data, answering.query)
            data = self._codec.encode(await contained(answering.handler(query)))
        except Undecodable as error:
            headers = _error_headers(*describe(Invalid(str(error))))
        except (Rejected, Unavailable) as error:
            headers = _error_headers(*describe(error))
        except Exception as error:
            log.error("query.failed", query=type_of(answering.query), exc_info=error)
            headers = _error_headers("Internal", "INTERNAL", type(error).__name__)
        finally:
            leave(token)
        if message.reply:
            try:
                await self._broker.core_publish(message.reply, data, headers)
            except (Unavailable, Invalid) as error:
                # The asker's timeout tells him.
                log.warning("query.not_answered", query=type_of(answering.query), error=str(error))


def _error_headers(kind: str, code: str, text: str) -> dict[str, str]:
    return {ERROR_KIND: kind, ERROR_CODE: code, ERROR_TEXT: header_text(text)}
