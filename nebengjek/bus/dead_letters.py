"""Dead letters: messages that a consumer could not handle, with their cause; to be shown, replayed or dropped.

They lie in DEAD_LETTER_STREAM under ``dead_letter.{stream}.{consumer}``, body and headers as they were. Where the
broker forgets with its process they lie in a table too, and come back into the stream at the next start.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import datetime

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.codec import ONLY_FOR, ORIGINAL_ID, original_id
from nebengjek.bus.errors import ApiError, InvalidHeader
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import (
    MAX_PAYLOAD,
    MSG_ID,
    Envelope,
    Headers,
    PubAck,
    StoredMessage,
    check_headers,
    header_block_size,
    header_text,
)
from nebengjek.bus.observing import Observer
from nebengjek.bus.tables import dead_letters
from nebengjek.clock import Clock
from nebengjek.errors import NotFound
from nebengjek.sql import insert_ignore

STREAM = "DEAD_LETTER_STREAM"

_NOT_THERE = (10043, 10057)
_PREFIX = "Dead-Letter-"
_SUBJECT, _STREAM, _SEQ, _CONSUMER = (f"{_PREFIX}{name}" for name in ("Subject", "Stream", "Seq", "Consumer"))
_DELIVERIES, _REASON, _ERROR, _CUT = (f"{_PREFIX}{name}" for name in ("Deliveries", "Reason", "Error", "Cut"))

log = structlog.stdlib.get_logger("nebengjek.bus.dead_letters")


class DeadLetter(Struct, frozen=True, kw_only=True):
    """``seq``: its number among the dead letters; ``headers``: the original ones."""

    seq: int
    stream: str
    consumer: str
    subject: str
    message_id: str
    reason: str
    error: str
    deliveries: int
    time: datetime
    headers: dict[str, str]
    data: str
    """The original body as text; bytes that are no UTF-8 are shown as \\x escapes."""


class DeadLetters:
    def __init__(
        self,
        broker: Broker,
        send: Callable[[Envelope], Awaitable[PubAck]],
        begin: Callable[[], AbstractAsyncContextManager[AsyncConnection]] | None,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._broker = broker
        self._send = send
        self._begin = begin if not broker.durable else None
        self._observer = observer
        self._clock = clock

    async def restore(self) -> None:
        """Put what the table holds back into the stream, where the broker has forgotten it."""
        if self._begin is None:
            return
        async with self._begin() as tx:
            rows = (await tx.execute(select(dead_letters).order_by(dead_letters.c.created_at))).all()
        for row in rows:
            await self._send(Envelope.of(row.subject, bytes(row.data), msgspec.json.decode(row.headers)))

    async def add(
        self, message: StoredMessage, *, consumer: str, deliveries: int, reason: str, error: str = ""
    ) -> None:
        """Keep ``message`` for a person to look at. Added twice it is there once.

        A body that leaves no room for the cause is cut to what the server takes.
        """
        headers = _sendable(message.headers)
        headers[ORIGINAL_ID] = original_id(headers, message.stream, message.seq)
        headers.pop(ONLY_FOR, None)
        headers |= {
            MSG_ID: self.id_of(message, consumer),
            _SUBJECT: message.subject,
            _STREAM: message.stream,
            _SEQ: str(message.seq),
            _CONSUMER: consumer,
            _DELIVERIES: str(deliveries),
            _REASON: reason,
            _ERROR: header_text(error),
        }
        room = MAX_PAYLOAD - header_block_size(headers) - 32
        if len(message.data) > room:
            # Our headers make it longer than the server takes: better a part of it than nothing.
            headers[_CUT] = str(len(message.data))
        envelope = Envelope.of(f"dead_letter.{message.stream}.{consumer}", message.data[:room], headers)
        if self._begin is not None:
            row = {
                "message_id": envelope.message_id,
                "subject": envelope.subject,
                "headers": msgspec.json.encode(headers).decode(),
                "data": envelope.data,
                "created_at": self._clock.seconds(),
            }
            async with self._begin() as tx:
                await insert_ignore(tx, dead_letters, row)
        await self._send(envelope)
        self._observer.dead_letter(consumer, reason)
        log.error("message.dead", stream=message.stream, seq=message.seq, consumer=consumer, reason=reason)

    async def ids(self, stream: str, consumer: str) -> set[str]:
        """``id_of`` all that were added for this consumer, however long ago."""
        subject = f"dead_letter.{stream}.{consumer}"
        async with aclosing(self._broker.ordered(STREAM, subject, headers_only=True, until_drained=True)) as letters:
            return {letter.headers.get(MSG_ID, "") async for letter in letters}

    def id_of(self, message: StoredMessage, consumer: str) -> str:
        """The message id of its dead letter."""
        named: str | int = message.seq
        if not self._broker.durable:
            # A broker that restarted counts from 1 again: the sequence alone would name another message.
            named = message.headers.get(MSG_ID) or original_id(message.headers, message.stream, message.seq)
        return f"dead:{message.stream}:{consumer}:{named}"

    async def list(self, limit: int = 100, after: int = 0) -> list[DeadLetter]:
        """The oldest ``limit`` with a number above ``after``."""
        info = await self._broker.stream_info(STREAM)
        found: list[DeadLetter] = []
        for seq in range(max(after + 1, info.first_seq), info.last_seq + 1):
            if len(found) == limit:
                break
            try:
                found.append(shown(await self._broker.get_message(STREAM, seq)))
            except ApiError as error:
                if error.code != 10037:
                    raise
        return found

    async def count(self) -> int:
        return (await self._broker.stream_info(STREAM)).messages

    async def show(self, seq: int) -> DeadLetter:
        """Raises NotFound."""
        return shown(await self._get(seq))

    async def replay(self, seq: int) -> DeadLetter:
        """Publish it again, for the one consumer that failed; it leaves the dead letters. Raises NotFound.

        Two who replay one letter at once publish one message.
        """
        message = await self._get(seq)
        headers = {k: v for k, v in message.headers.items() if not k.startswith(_PREFIX)}
        letter = f"{message.headers.get(MSG_ID, '')}:{seq}"
        headers[MSG_ID] = f"replay:{hashlib.sha256(letter.encode()).hexdigest()[:32]}"
        headers[ONLY_FOR] = message.headers[_CONSUMER]
        await self._send(Envelope.of(message.headers[_SUBJECT], message.data, headers))
        await self._remove(message)
        return shown(message)

    async def drop(self, seq: int) -> DeadLetter:
        """Forget it. Raises NotFound."""
        message = await self._get(seq)
        await self._remove(message)
        return shown(message)

    async def _get(self, seq: int) -> StoredMessage:
        try:
            return await self._broker.get_message(STREAM, seq)
        except ApiError as error:
            if error.code == 10037:
                raise NotFound(f"there is no dead letter {seq}") from error
            raise

    async def _remove(self, message: StoredMessage) -> None:
        if self._begin is not None:
            async with self._begin() as tx:
                await tx.execute(delete(dead_letters).where(dead_letters.c.message_id == message.headers[MSG_ID]))
        try:
            await self._broker.delete_message(STREAM, message.seq)
        except ApiError as error:
            if error.code in _NOT_THERE:
                raise NotFound(f"dead letter {message.seq} was replayed or dropped meanwhile") from error
            raise


def _sendable(headers: Headers) -> dict[str, str]:
    """Without those that somebody published and we may not, or that spoke to the stream of then: they must not keep
    their message from being buried."""
    found = {key: value for key, value in headers.items() if not key.startswith("Nats-") or key == MSG_ID}
    for key, value in tuple(found.items()):
        try:
            check_headers({key: value})
        except InvalidHeader:
            del found[key]
    return found


def shown(message: StoredMessage) -> DeadLetter:
    """A message of DEAD_LETTER_STREAM, for people."""
    headers: Headers = message.headers
    return DeadLetter(
        seq=message.seq,
        stream=headers.get(_STREAM, ""),
        consumer=headers.get(_CONSUMER, ""),
        subject=headers.get(_SUBJECT, message.subject),
        message_id=headers.get(ORIGINAL_ID, ""),
        reason=headers.get(_REASON, ""),
        error=headers.get(_ERROR, ""),
        deliveries=int(headers.get(_DELIVERIES, "0")),
        time=message.time,
        headers={k: v for k, v in headers.items() if not k.startswith(_PREFIX)},
        data=message.data.decode(errors="backslashreplace"),
    )
