"""A delivery that came as a message: all about it is in its reply subject, and there it is settled."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from nebengjek.bus.deliveries import Delivery
from nebengjek.bus.errors import AckTimeout, AlreadySettled, Disconnected, NoResponders, RequestTimeout
from nebengjek.bus.times import nanoseconds

ACK_PREFIX = "$JS.ACK."


class Message(Protocol):
    """What came over the wire."""

    @property
    def subject(self) -> str: ...
    @property
    def reply(self) -> str | None: ...
    @property
    def data(self) -> bytes: ...
    @property
    def headers(self) -> dict[str, str] | None: ...


class Listener(ABC):
    """A subscription that outlives reconnects."""

    @abstractmethod
    async def stop(self) -> None:
        """No further message."""

    @abstractmethod
    async def drain(self) -> None:
        """No further message is sent; those that were already sent are still received before this returns."""


class Post(ABC):
    """How settling leaves this process."""

    @abstractmethod
    async def send(self, subject: str, data: bytes, *, reply: str = "") -> None:
        """Send, or keep until the connection returns. Raises Disconnected when it is closed."""

    @abstractmethod
    async def ask(self, subject: str, data: bytes, headers: Mapping[str, str] | None, timeout: float) -> Any:
        """Raises NoResponders, RequestTimeout, Disconnected."""


class Line(Post):
    """How deliveries come in by themselves."""

    @abstractmethod
    async def attend(self, subject: str, queue: str | None, received: Callable[[Message], None]) -> Listener:
        """Listen to ``subject`` until told otherwise."""


class WireDelivery(Delivery):
    """One delivery, settled by what is sent to its reply subject."""

    __slots__ = ("_post", "_timestamp", "reply")

    def __init__(self, post: Post, message: Message) -> None:
        self._post = post
        self.reply = reply = message.reply or ""
        self.is_settled = False
        self.subject = message.subject
        self.headers = message.headers or {}
        self.data = message.data
        # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>[.<random>]
        tokens = reply.split(".")
        at = 2 if len(tokens) == 9 else 4
        self.stream = tokens[at]
        self.consumer = tokens[at + 1]
        self.deliveries = int(tokens[at + 2])
        self.seq = int(tokens[at + 3])
        self.consumer_seq = int(tokens[at + 4])
        self._timestamp = tokens[at + 5]
        self.pending = int(tokens[at + 6])

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(int(self._timestamp) / 1_000_000_000, UTC)

    async def ack(self) -> None:
        self.settle()
        await self._post.send(self.reply, b"+ACK")

    async def ack_sync(self, timeout: float = 5.0) -> None:
        self.settle()
        try:
            await self._post.ask(self.reply, b"+ACK", None, timeout)
        except (RequestTimeout, NoResponders, Disconnected) as error:
            raise AckTimeout("bus", f"{self.stream}:{self.seq} was not confirmed") from error

    async def nak(self, delay: float = 0.0) -> None:
        self.settle()
        await self._post.send(self.reply, b'-NAK {"delay": %d}' % nanoseconds(delay) if delay > 0 else b"-NAK")

    async def in_progress(self) -> None:
        if self.is_settled:
            raise AlreadySettled(f"{self.stream}:{self.seq} was settled")
        await self._post.send(self.reply, b"+WPI")

    async def term(self, reason: str = "") -> None:
        self.settle()
        await self._post.send(self.reply, b"+TERM " + reason.encode() if reason else b"+TERM")

    def settle(self) -> None:
        """Once only: raises AlreadySettled."""
        if self.is_settled:
            raise AlreadySettled(f"{self.stream}:{self.seq} was settled")
        self.is_settled = True
