"""Frames to phones: what must not be missed goes through the mailbox, the rest is conflated.

The mailbox is the truth, a connection's bell only says that it holds more. A connection sends answers first, then what
the mailbox holds beyond its last seq, then the newest of each kind that may be missed; one at a time, and what a phone
does not take waits with it alone.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
import structlog

from nebengjek.clock import Clock
from nebengjek.contracts.pods import UserPost
from nebengjek.errors import Unavailable
from nebengjek.realtime.eager import begin
from nebengjek.realtime.mailbox import Forgotten, Frame, Mailbox
from nebengjek.realtime.presence import Presence
from nebengjek.realtime.relay import Relay
from nebengjek.tasks import cancelled
from nebengjek.tokens import Identity

Send = Callable[[Any], Awaitable[None]]
MAX_ANSWERS = 256
"""Answers that wait for a phone that does not read; one more and the connection is closed (4408)."""
MAX_SHOWN = 64
"""Kinds of frames that may be missed of which the newest waits; of one more the oldest kind is left out."""
MAX_LETTERS = 64
"""Frames taken out of the mailbox at once: what a phone does not take stays in there."""
STALL_SECONDS = 20.0

SLOW_PHONE = 4408
TOKEN_ENDED = 4401
START_ANEW = 4409
"""The mailbox does not hold any more what this phone has not seen: it connects again and gets a snapshot."""
RING_AGAIN = 0.5
"""Seconds until a mailbox that does not answer is asked again."""
TRY_AGAIN = 1013
TOO_MANY = 4410
SOCKETS_PER_USER = 10
USERS_AT_ONCE = 500

log = structlog.stdlib.get_logger("nebengjek.realtime")

_encode = msgspec.json.Encoder().encode


def encode_frame(event: str, data: Any) -> bytes:
    """A frame without a seq."""
    return b'{"event":"%b","data":%b}' % (event.encode(), _encode(data))


class Connection:
    """One socket of one user on this pod. ``close_code`` is set when the server wants it closed.

    Nothing is sent before ``open``. ``send`` is ASGI's; the one of a close must not wait for the phone.
    """

    def __init__(
        self, connection_id: str, identity: Identity, mailbox: Mailbox, epoch: str, last_seq: int, send: Send
    ) -> None:
        self.id = connection_id
        self.identity = identity
        self.epoch = epoch
        self.last_seq = last_seq
        self.close_code: int | None = None
        self._mailbox = mailbox
        self._send = send
        self._answers: list[bytes] = []
        self._newest: dict[str, bytes] = {}
        self._mail = False
        self._busy = True
        """Not open, or something is being sent: whoever sends sees what is new."""
        self._sending: asyncio.Task[None] | None = None
        self._sent = 0
        self._stalled: tuple[int, float] | None = None
        """What had been sent when a send was first seen waiting, and when that was."""

    @property
    def user_id(self) -> str:
        return self.identity.user_id

    def open(self) -> None:
        """From now on what there is is sent."""
        if self._sending is not None:
            return  # it was cut off already
        self._busy = False
        self._wake()

    def answer(self, frame: bytes) -> None:
        """Send ``frame``, in order, as soon as the phone takes it."""
        if self.close_code is not None:
            return
        self._answers.append(frame)
        if len(self._answers) > MAX_ANSWERS:
            self.cut_off(SLOW_PHONE)
        self._wake()

    def tell(self, frame: bytes) -> None:
        """Send ``frame``, in order, unless too much waits for the phone already."""
        if len(self._answers) < MAX_ANSWERS // 2:
            self.answer(frame)

    def show(self, kind: str, frame: bytes) -> None:
        """Send ``frame`` unless a newer one of its kind comes first."""
        if self.close_code is not None:
            return
        self._newest[kind] = frame
        if len(self._newest) > MAX_SHOWN:
            del self._newest[next(iter(self._newest))]
        self._wake()

    def ring(self) -> None:
        """The mailbox holds more."""
        if self.close_code is not None:
            return
        self._mail = True
        self._wake()

    def close(self, code: int) -> None:
        """Send what there is, and close the socket."""
        if self.close_code is None:
            self.close_code = code
        self._wake()

    @property
    def waiting(self) -> int:
        """Frames that wait in this process for the phone to take what it was sent."""
        return len(self._answers) + len(self._newest)

    def look(self, now: float, patience: float) -> None:
        """Each second: cut the phone off (4408) when it has taken nothing for ``patience`` seconds."""
        if self._sending is None or self._sending.done():
            self._stalled = None
        elif self._stalled is None or self._stalled[0] != self._sent:
            self._stalled = (self._sent, now)
        elif now - self._stalled[1] >= patience:
            self.cut_off(SLOW_PHONE)

    def cut_off(self, code: int) -> None:
        """Close, and wait for nothing: what was to be sent is in the mailbox, may be missed, or is asked for again."""
        self.close_code = self.close_code or code
        self._answers.clear()
        self._newest.clear()
        self._mail = False
        if self._sending is not None:
            self._sending.cancel()
        self._busy = True
        # In a task of its own: who shows this phone something must not fail with it.
        self._sending = asyncio.create_task(self._send_all(), name=f"sender {self.id}")

    async def end(self) -> None:
        """The socket is no more."""
        self._busy = True
        if self._sending is not None:
            await cancelled(self._sending)

    def _wake(self) -> None:
        if self._busy:
            return
        self._busy = True
        if self._mail:
            self._sending = asyncio.create_task(self._send_all(), name=f"sender {self.id}")
        else:
            self._sending = begin(self._send_all())

    async def _send_all(self) -> None:
        send = self._send
        try:
            while self._answers or self._mail or self._newest:
                while self._answers:
                    await send({"type": "websocket.send", "text": self._answers.pop(0).decode()})
                    self._sent += 1
                if self._mail:
                    self._mail = False
                    for frame in await self._letters():
                        await send({"type": "websocket.send", "text": frame.data.decode()})
                        self._sent += 1
                        self.last_seq = frame.seq
                if self._newest:
                    frame_bytes = self._newest.pop(next(iter(self._newest)))
                    await send({"type": "websocket.send", "text": frame_bytes.decode()})
                    self._sent += 1
        except OSError:
            # A socket that dies under a send is the end of a phone, not an error of ours; nothing is sent any more.
            return
        except Exception as error:
            log.error("phone.broken", connection=self.id, exc_info=error)
            self.close_code = self.close_code or TRY_AGAIN
        if self.close_code is not None:
            with suppress(OSError):
                await send({"type": "websocket.close", "code": self.close_code, "reason": ""})
            return
        self._busy = False

    async def _letters(self) -> list[Frame]:
        """What the mailbox holds beyond what was sent; with the mailbox away nothing, and the bell rings again."""
        try:
            letters = await self._mailbox.after(self.user_id, self.last_seq, self.epoch, MAX_LETTERS)
            # A full hand: there may be more.
            self._mail = self._mail or len(letters) == MAX_LETTERS
            return letters
        except Unavailable:
            asyncio.get_running_loop().call_later(RING_AGAIN, self.ring)
        except Forgotten:
            self.close(START_ANEW)
        return []


class Delivery:
    """The connections of this pod, and how an event reaches them; through ``relay`` those of other pods too."""

    def __init__(
        self,
        mailbox: Mailbox,
        presence: Presence,
        clock: Clock,
        relay: Relay | None = None,
        *,
        patience: float = STALL_SECONDS,
        sockets_per_user: int = SOCKETS_PER_USER,
        cut_off: Callable[[], None] | None = None,
    ) -> None:
        """``patience``: seconds for which a phone may take nothing; ``cut_off``: called when one is closed for it."""
        self.mailbox = mailbox
        self.presence = presence
        self._clock = clock
        self._relay = relay
        self._patience = patience
        self._sockets_per_user = sockets_per_user
        self._cut_off = cut_off
        self._by_user: dict[str, dict[str, Connection]] = {}

    async def start(self) -> None:
        """Be seen by the other pods and hear them."""
        await self.beat()

    async def stop(self) -> None:
        if self._relay is not None:
            await self._relay.stop()

    async def beat(self) -> None:
        """Each two seconds."""
        await self.presence.beat()
        if self._relay is not None:
            await self._relay.start(self._posted)

    def _posted(self, post: UserPost) -> None:
        """Another pod heard something for this user."""
        connections = self._by_user.get(post.user_id)
        if not connections:
            return
        for answer in post.answers:
            if (one := connections.get(answer.connection_id)) is not None:
                one.answer(bytes(answer.frame))
        for connection in connections.values():
            for kind, frame in post.shown.items():
                connection.show(kind, bytes(frame))
            if post.mail:
                connection.ring()

    async def look_for_mail(self) -> None:
        """Ring where a mailbox holds more than was sent: what another pod said of it may have been lost."""
        if self._relay is None:
            return
        users = list(self._by_user)
        for start in range(0, len(users), USERS_AT_ONCE):
            some = users[start : start + USERS_AT_ONCE]
            counts = await self.mailbox.counts(some)
            for user_id in some:
                # Who is connected has a mailbox: one that is not there has been lost, with what was in it.
                for connection in self._by_user.get(user_id, {}).values():
                    if (connection.epoch, connection.last_seq) != counts.get(user_id):
                        connection.ring()

    async def attach(self, connection: Connection) -> None:
        """Of more than ``sockets_per_user`` of one user here the oldest are closed (4410)."""
        connections = self._by_user.setdefault(connection.user_id, {})
        connections[connection.id] = connection
        for oldest in list(connections.values())[: -self._sockets_per_user]:
            if oldest.close_code is None:
                oldest.cut_off(TOO_MANY)
        await self.presence.attach(connection.user_id, connection.id)

    async def detach(self, connection: Connection) -> None:
        """Only this connection: another one of the same user goes on."""
        connections = self._by_user.get(connection.user_id, {})
        connections.pop(connection.id, None)
        if not connections:
            self._by_user.pop(connection.user_id, None)
        if connection.close_code == SLOW_PHONE:
            log.info("phone.slow", connection=connection.id, sent=connection.last_seq)
            if self._cut_off is not None:
                self._cut_off()
        await self.presence.detach(connection.user_id, connection.id)

    async def deliver(self, user_id: str, event: str, data: Any, *, message_id: str) -> None:
        """A frame that must not be missed; returns when it is in the mailbox. The same message id again: nothing."""
        await self.mailbox.append(user_id, message_id, event, _encode(data))
        for connection in self._by_user.get(user_id, {}).values():
            connection.ring()
        if self._relay is not None:
            self._relay.ring(user_id)

    def here(self, user_id: str) -> bool:
        """Does this pod hold a phone of his?"""
        return user_id in self._by_user

    def tell(self, user_id: str, event: str, data: Any) -> None:
        """A part of something that comes whole later: to the user's phones on this pod, in order, if they read."""
        if connections := self._by_user.get(user_id):
            frame = encode_frame(event, data)
            for connection in connections.values():
                connection.tell(frame)

    def show(self, user_id: str, event: str, data: Any, *, about: str = "") -> None:
        """A frame that may be missed: of one event ``about`` one thing only the newest waits for a slow phone."""
        connections = self._by_user.get(user_id)
        if not connections and self._relay is None:
            return
        frame, kind = encode_frame(event, data), event + about
        if connections:
            for connection in connections.values():
                connection.show(kind, frame)
        if self._relay is not None:
            self._relay.show(user_id, kind, frame)

    def answer(self, user_id: str, connection_id: str, frame: bytes) -> None:
        """The answer to a frame, to the connection that sent it, if it is still there."""
        connection = self._by_user.get(user_id, {}).get(connection_id)
        if connection is not None:
            connection.answer(frame)
        elif self._relay is not None:
            self._relay.answer(user_id, connection_id, frame)

    def close_session(self, user_id: str, session_id: str) -> None:
        """Close the sockets of one login (4401)."""
        for connection in list(self._by_user.get(user_id, {}).values()):
            if connection.identity.session_id == session_id:
                connection.close(TOKEN_ENDED)

    async def tend(self) -> None:
        """Close the sockets whose token has ended (4401), and those that take nothing of what they are sent (4408)."""
        now: datetime = self._clock.now()
        # A phone that does not read is a matter of the network: no clock that somebody sets has a say in it.
        passed = time.monotonic()
        for connections in list(self._by_user.values()):
            for connection in list(connections.values()):
                if connection.identity.expires_at <= now:
                    connection.close(TOKEN_ENDED)
                connection.look(passed, self._patience)

    @property
    def sockets(self) -> int:
        """Open connections on this pod."""
        return sum(len(connections) for connections in self._by_user.values())

    @property
    def users(self) -> int:
        """Who has at least one connection on this pod."""
        return len(self._by_user)

    def waiting(self) -> tuple[int, int]:
        """(connections whose phone does not take what it is sent, frames that wait for them in this process)."""
        waiting = [one.waiting for connections in self._by_user.values() for one in connections.values() if one.waiting]
        return len(waiting), sum(waiting)
