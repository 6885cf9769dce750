"""What pulls and publishes need of the connection, and what it tells them when no answer can come."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from nebengjek.bus.errors import BusError
from nebengjek.bus.messages import Headers
from nebengjek.bus.wire_delivery import Listener, Message, Post

Received = Callable[[Any], Awaitable[None]]


class Waiting(ABC):
    """Something that was sent to ``subject`` and waits for what comes back."""

    __slots__ = ()

    subject: str

    @abstractmethod
    def lost(self) -> None:
        """The connection broke: nothing comes any more."""

    @abstractmethod
    def fail(self, error: BusError) -> None:
        """The server did not take it."""


class Question(Waiting):
    """What is answered once, on the connection's own inbox."""

    __slots__ = ()

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Nobody waits for the answer any more."""

    @abstractmethod
    def answered(self, message: Message) -> None: ...


class Link(Post):
    """The connection, as pulls and publishes see it."""

    @abstractmethod
    async def send(self, subject: str, data: bytes, *, reply: str = "", headers: Headers | None = None) -> None:
        """Also raises MaxPayload, InvalidHeader."""

    @abstractmethod
    def write(self, subject: str, data: bytes, reply: str, headers: Headers) -> bool:
        """Send in this turn of the loop; False when only ``send`` can, which waits. All of it was checked."""

    @abstractmethod
    def connected(self) -> bool: ...

    @abstractmethod
    async def wait_connected(self) -> None: ...

    @abstractmethod
    def new_inbox(self) -> str: ...

    @abstractmethod
    async def listen(self, subject: str, received: Received) -> Listener: ...

    @abstractmethod
    def in_background(self, work: Awaitable[None]) -> None:
        """Do it, and wait for it when the connection closes."""

    @abstractmethod
    def expect(self, question: Question) -> str:
        """The reply subject under which the server answers it."""

    @abstractmethod
    def expect_no_more(self, reply: str) -> None: ...

    @abstractmethod
    def waits(self, waiting: Waiting) -> None:
        """Tell it when the connection breaks or the server refuses its subject."""

    @abstractmethod
    def waits_no_more(self, waiting: Waiting) -> None: ...
