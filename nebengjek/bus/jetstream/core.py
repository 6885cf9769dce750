"""Core NATS over the connection: requests, subscriptions and plain messages, and what JetStream's parts build on.

When the connection ends, who waits is told; who listens does so again on the next one. Over 300 lines because of that
end, which all of it shares.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

import structlog
from msgspec import structs
from nats import errors as nats_errors
from nats.aio.msg import Msg

from nebengjek.bus import interface
from nebengjek.bus.errors import (
    BusError,
    Disconnected,
    InvalidHeader,
    MaxPayload,
    NoResponders,
    NotPermitted,
    RequestTimeout,
)
from nebengjek.bus.interface import Connection, ConnectionStatus, CoreHandler, Subscription
from nebengjek.bus.jetstream.access import Access, Violation, inbox_of
from nebengjek.bus.jetstream.client import ReadingClient
from nebengjek.bus.jetstream.connection import CLOSE_PATIENCE, NatsConnection
from nebengjek.bus.jetstream.link import Link, Question, Received, Waiting
from nebengjek.bus.jetstream.listening import Listening
from nebengjek.bus.messages import MAX_PAYLOAD, CoreMessage, Headers, check_headers
from nebengjek.bus.subjects import check_subject
from nebengjek.bus.wire_delivery import Line, Listener, Message

NO_RESPONDERS = "503"
HELD = 512 * 1024
"""Messages on their way to pulls and push consumers, which the server bounds first."""
MAX_COMPLAINTS = 256
"""So many different refusals are named in the log; a thousand more would say the same."""
_NO_HEADERS: dict[str, str] = {}

log = structlog.stdlib.get_logger("nebengjek.bus")


class _Asked(Question):
    """A request that waits for its answer."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        return self.answer.done()

    def answered(self, message: Message) -> None:
        if not self.answer.done():
            self.answer.set_result(message)

    def lost(self) -> None:
        self.fail(Disconnected("bus"))

    def fail(self, error: BusError | Disconnected) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class NatsCore(NatsConnection, Link, Line):
    """The part of the broker that any nats-server serves, with JetStream or without."""

    def __init__(
        self,
        access: Access,
        *,
        name: str,
        inbox_prefix: str | None,
        connect_timeout: float,
        reconnect_wait: float,
        ping_interval: float,
        request_timeout: float,
    ) -> None:
        super().__init__(
            access,
            name=name,
            connect_timeout=connect_timeout,
            reconnect_wait=reconnect_wait,
            ping_interval=ping_interval,
        )
        self._user = access.user
        self._api = access.api
        self._request_timeout = request_timeout
        self._attached: ReadingClient | None = None
        self._not_permitted: set[Violation] = set()
        self._deaf: NotPermitted | None = None
        """Set when we may not listen to our inbox: no answer could ever come."""
        self._listening: set[Listening] = set()
        self._background: set[asyncio.Future[None]] = set()
        self._inbox = f"{inbox_prefix or inbox_of(self._user)}.{secrets.token_hex(11)}"
        self._number = 0
        self._questions: dict[str, Question] = {}
        """By the reply subject of each."""
        self._sweep_at = 4096
        self._waiting: set[Waiting] = set()

    # -- what becomes of the connection

    async def _attach(self, client: ReadingClient) -> None:
        try:
            await client.take_answers(f"{self._inbox}.*", self._replied)
            self._attached = client
            for listening in list(self._listening):
                await listening.attach(client)
            await client.flush()
        except nats_errors.Error as error:
            # It broke already. The client subscribes again when it is back, or is replaced by another.
            log.debug("nats.not_subscribed", error=f"{type(error).__name__}: {error}")

    def _refused(self, refused: Violation) -> None:
        """The server said no, and says nothing else: whoever waits for an answer hears it from us."""
        doing = "publish to" if refused.publish else "listen to"
        error = NotPermitted(f"{self._name} may not {doing} {refused.subject}")
        if refused not in self._not_permitted and len(self._not_permitted) < MAX_COMPLAINTS:
            self._not_permitted.add(refused)
            log.error("nats.not_permitted", error=str(error), queue=refused.queue or None)
        if refused.publish:
            for waiting in (*self._questions.values(), *self._waiting):
                if refused.subject in (waiting.subject.lower(), self._without_domain(waiting.subject).lower()):
                    waiting.fail(NotPermitted(f"{self._name} may not publish to {waiting.subject}"))
        elif refused.subject == f"{self._inbox}.*".lower():
            self._deaf = error
        else:
            for listening in self._listening:
                if (listening.subject.lower(), listening.queue.lower()) == (refused.subject, refused.queue):
                    listening.refused = NotPermitted(f"{self._name} may not listen to {listening.subject}")

    def _without_domain(self, subject: str) -> str:
        """As a server that is in our domain itself says the subject."""
        return subject.replace(self._api, "$JS.API", 1)

    @property
    def _name(self) -> str:
        return f"the NATS user {self._user}" if self._user else "our NATS user"

    def _nothing_comes(self) -> None:
        self._deaf = None
        questions, self._questions = self._questions, {}
        for waiting in (*questions.values(), *self._waiting):
            waiting.lost()

    def connection(self) -> Connection:
        told = super().connection()
        return told if self._deaf is None else structs.replace(told, error=str(self._deaf))

    async def close(self) -> None:
        if self._status is ConnectionStatus.CLOSED:
            return
        if self._background:
            await asyncio.wait(self._background, timeout=CLOSE_PATIENCE)
        await super().close()
        for work in self._background:
            work.cancel()

    # -- what pulls and deliveries use

    def connected(self) -> bool:
        return self._status is ConnectionStatus.UP

    def new_inbox(self) -> str:
        self._number += 1
        return f"{self._inbox}.{self._number}.pull"

    def expect(self, question: Question) -> str:
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        if len(self._questions) >= self._sweep_at:
            # Whose caller stopped waiting, and whose answer never came.
            self._questions = {token: one for token, one in self._questions.items() if not one.is_over}
            self._sweep_at = max(4096, 2 * len(self._questions))
        self._questions[reply] = question
        return reply

    def expect_no_more(self, reply: str) -> None:
        self._questions.pop(reply, None)

    def waits(self, waiting: Waiting) -> None:
        self._waiting.add(waiting)

    def waits_no_more(self, waiting: Waiting) -> None:
        self._waiting.discard(waiting)

    def in_background(self, work: Awaitable[None]) -> None:
        future = asyncio.ensure_future(work)
        self._background.add(future)
        future.add_done_callback(self._done_in_background)

    def _done_in_background(self, future: asyncio.Future[None]) -> None:
        self._background.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            log.debug("nats.not_sent", error=f"{type(error).__name__}: {error}")

    async def listen(self, subject: str, received: Received) -> Listener:
        return await self._listen(subject, received, "")

    async def attend(self, subject: str, queue: str | None, received: Callable[[Message], None]) -> Listener:
        async def came(message: Msg) -> None:
            received(message)

        return await self._listen_surely(subject, came, queue)

    async def _listen_surely(
        self, subject: str, received: Received, queue: str | None, pending: int = HELD
    ) -> Listening:
        """When it returns the server knows of it, if it is there. Raises NotPermitted."""
        listening = await self._listen(subject, received, queue or "", pending)
        if self._status is ConnectionStatus.UP and self._attached is not None:
            try:
                await self._attached.flush()
            except nats_errors.Error as error:
                log.debug("nats.not_flushed", error=f"{type(error).__name__}: {error}")
        if listening.refused is not None:
            self._listening.discard(listening)
            raise listening.refused
        return listening

    async def _listen(self, subject: str, received: Received, queue: str, pending: int = HELD) -> Listening:
        """``pending``: messages that may wait to be taken; what comes then is lost."""
        listening = Listening(subject, received, queue, pending, self._listening.discard)
        self._listening.add(listening)
        if self._attached is not None and not self._attached.is_closed:
            await listening.attach(self._attached)
        return listening

    def write(self, subject: str, data: bytes, reply: str, headers: Headers) -> bool:
        client = self._attached
        return (
            client is not None and self._status is ConnectionStatus.UP and client.write(subject, data, reply, headers)
        )

    async def send(self, subject: str, data: bytes, *, reply: str = "", headers: Headers | None = None) -> None:
        client = self._attached
        if client is None or self._status is ConnectionStatus.CLOSED:
            raise Disconnected("bus")
        try:
            await client.publish(subject, data, reply=reply, headers=cast(dict[str, str], headers) if headers else None)
        except nats_errors.MaxPayloadError as error:
            raise MaxPayload(str(error)) from error
        except nats_errors.BadHeaderError as error:
            raise InvalidHeader(str(error)) from error
        except nats_errors.Error as error:
            raise Disconnected("bus", f"{type(error).__name__}: {error}") from error

    async def ask(self, subject: str, data: bytes, headers: Headers | None, timeout: float) -> Message:
        self._must_hear()
        asked = _Asked(subject)
        reply = self.expect(asked)
        try:
            async with asyncio.timeout(timeout):
                await self.send(subject, data, reply=reply, headers=headers)
                message = await asked.answer
        except TimeoutError as error:
            raise RequestTimeout("bus", f"no answer on {subject} within {timeout} s") from error
        finally:
            self.expect_no_more(reply)
        if message.headers is not None and message.headers.get("Status") == NO_RESPONDERS and not message.data:
            raise NoResponders("bus", f"nobody serves {subject}")
        return message

    def _must_hear(self) -> None:
        """Raises Disconnected; NotPermitted where no answer could reach us."""
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        if self._deaf is not None:
            raise self._deaf

    def _replied(self, message: Msg) -> None:
        question = self._questions.get(message.subject)
        if question is not None:
            question.answered(message)

    def _check_payload(self, size: int) -> None:
        limit = self._client.max_payload if self._client is not None else MAX_PAYLOAD
        if size > limit:
            raise MaxPayload(f"{size} bytes are more than {limit}")

    # -- core

    async def core_publish(
        self, subject: str, data: bytes, headers: Headers | None = None, *, reply: str | None = None
    ) -> None:
        check_subject(subject)
        self._check_payload(check_headers(headers or _NO_HEADERS) + len(data))
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        await self.send(subject, data, reply=reply or "", headers=headers)

    async def subscribe(self, subject: str, handler: CoreHandler, *, queue: str | None = None) -> Subscription:
        check_subject(subject, literal=False)
        loop = asyncio.get_running_loop()

        async def received(message: Msg) -> None:
            try:
                await handler(_core_message(message))
            except Exception as error:
                # One bad message must not end the subscription; the loop's handler reports it.
                loop.call_exception_handler({"message": f"a core handler failed: {subject}", "exception": error})

        return await self._listen_surely(subject, received, queue, interface.CORE_PENDING)

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, *, timeout: float
    ) -> CoreMessage:
        check_subject(subject)
        self._check_payload(check_headers(headers or _NO_HEADERS) + len(data))
        return _core_message(await self.ask(subject, data, headers, timeout))


def _core_message(message: Message) -> CoreMessage:
    return CoreMessage(
        subject=message.subject, data=message.data, headers=message.headers or {}, reply=message.reply or None
    )
