"""Publishing to streams: written in the order in which it was submitted, and each answer finds its publish."""

import asyncio
from collections import deque

import msgspec
from msgspec import Struct

from nebengjek.bus.errors import BusError, Disconnected, InvalidHeader, MaxPayload, NoStream, PublishRefused
from nebengjek.bus.jetstream.link import Link, Question
from nebengjek.bus.messages import Envelope, PubAck
from nebengjek.bus.wire_delivery import Message
from nebengjek.tasks import cancelled

NO_RESPONDERS = "503"
TRIES, PAUSE = 3, 0.25
"""A publish that finds no responders is tried again (ADR-22): a stream's leader may just be changing."""


class _Refusal(Struct):
    code: int = 500
    err_code: int = 0
    description: str = ""


class _Answer(Struct):
    """What a stream says to a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Refusal | None = None


_answer = msgspec.json.Decoder(_Answer)


class Publish(Question):
    """One message on its way to its stream."""

    __slots__ = ("_publisher", "envelope", "future", "reply", "subject", "tries")

    def __init__(self, publisher: "Publisher", envelope: Envelope) -> None:
        self._publisher = publisher
        self.envelope = envelope
        self.subject = envelope.subject
        self.reply = ""
        self.future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        self.tries = 0

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def answered(self, message: Message) -> None:
        self._publisher.answered(self, message)

    def lost(self) -> None:
        self.fail(Disconnected("bus"))

    def fail(self, error: BusError | Disconnected | MaxPayload | InvalidHeader) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Publisher:
    """Publishes over ``link``; ``start`` before the first, ``stop`` when nothing is to be sent any more."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outgoing: deque[Publish] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="nats publisher")

    async def stop(self) -> None:
        if self._sender is not None:
            await cancelled(self._sender)

    def submit(self, envelope: Envelope) -> asyncio.Future[PubAck]:
        publish = Publish(self, envelope)
        publish.reply = self._link.expect(publish)
        if self._outgoing or not self._link.write(envelope.subject, envelope.data, publish.reply, envelope.headers):
            self._post(publish)
        return publish.future

    def _post(self, publish: Publish) -> None:
        self._outgoing.append(publish)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _send_all(self) -> None:
        """What could not be written when it was submitted."""
        loop = asyncio.get_running_loop()
        while True:
            while self._outgoing:
                publish = self._outgoing.popleft()
                if publish.future.done():
                    continue
                one = publish.envelope
                try:
                    await self._link.send(one.subject, one.data, reply=publish.reply, headers=one.headers)
                except (Disconnected, MaxPayload, InvalidHeader) as error:
                    self._link.expect_no_more(publish.reply)
                    publish.fail(error)
            self._wake = loop.create_future()
            await self._wake

    def answered(self, publish: Publish, message: Message) -> None:
        if not message.data and message.headers and message.headers.get("Status") == NO_RESPONDERS:
            publish.tries += 1
            if publish.tries < TRIES and not publish.future.done():
                asyncio.get_running_loop().call_later(PAUSE, self._again, publish)
                return
            publish.fail(NoStream(f"no stream takes {publish.subject}"))
        else:
            answer = _answer.decode(message.data)
            if answer.error is not None:
                error = answer.error
                publish.fail(PublishRefused(error.err_code, error.description, status=error.code))
            elif not publish.future.done():
                publish.future.set_result(PubAck(answer.stream, answer.seq, answer.duplicate))
        self._link.expect_no_more(publish.reply)

    def _again(self, publish: Publish) -> None:
        if not publish.future.done():
            self._post(publish)
