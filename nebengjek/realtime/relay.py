"""From pod to pod: what is for phones that are connected elsewhere. It may get lost: the mailbox is the truth.

What comes while a round is on its way is gathered for the next: of a kind that may be missed the newest, so a slow
server makes messages larger and never more.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import msgspec
import structlog
from msgspec import Raw

from nebengjek.bus.errors import NotPermitted
from nebengjek.bus.interface import Broker
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.payloads import CONTENT_ENCODING, Payloads, Unreadable
from nebengjek.contracts.pods import (
    BROADCASTS,
    PodPosts,
    PostedAnswer,
    UserPost,
    broadcast_subject,
    deliver_subject,
)
from nebengjek.errors import Invalid, Unavailable
from nebengjek.realtime.presence import Presence
from nebengjek.tasks import cancelled

MAX_BYTES = 256 * 1024
"""Of a message; one more post is the next one's."""
MAX_ANSWERS = 10_000
"""Answers that wait for the next round. A phone whose answer is dropped asks again: it has the frame's id."""

Receive = Callable[[UserPost], None]

log = structlog.stdlib.get_logger("nebengjek.realtime")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(PodPosts).decode


class _Pending:
    """What waits for one user."""

    __slots__ = ("answers", "mail", "shown")

    def __init__(self) -> None:
        self.mail = False
        self.shown: dict[str, bytes] = {}
        self.answers: list[tuple[str, bytes]] = []

    def post(self, user_id: str) -> bytes:
        answers = [PostedAnswer(connection_id=one, frame=Raw(frame)) for one, frame in self.answers]
        shown = {kind: Raw(frame) for kind, frame in self.shown.items()}
        return _encode(UserPost(user_id=user_id, mail=self.mail, shown=shown, answers=answers))


class Relay:
    """Between ``start`` and ``stop`` it hands what is said here to the pods that hold the user's phones."""

    def __init__(self, broker: Broker, presence: Presence, *, pod_id: str, payloads: Payloads | None = None) -> None:
        self._broker = broker
        self._presence = presence
        self._pod_id = pod_id
        self._payloads = payloads or Payloads()
        self._pending: dict[str, _Pending] = {}
        self._answers = 0
        self._wake = asyncio.Event()
        self._listening = False
        self._task: asyncio.Task[None] | None = None

    async def start(self, receive: Receive) -> None:
        """Listen, as soon as there is a bus: with it away call again. ``receive`` gets what is for any phone here."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="relay")
        if self._listening:
            return

        async def posted(message: CoreMessage) -> None:
            try:
                data, encoding = message.data, message.headers.get(CONTENT_ENCODING)
                if encoding is not None:
                    data = self._payloads.unwrap(data, message.subject, encoding)
                posts = _decode(data).posts
            except (Unreadable, msgspec.DecodeError) as error:
                log.warning("relay.undecodable", subject=message.subject, error=str(error))
                return
            for post in posts:
                receive(post)

        with suppress(Unavailable):
            # First the one that fails when the bus is away: a second try must not listen twice.
            await self._broker.subscribe(deliver_subject(self._pod_id), posted)
            self._listening = True
            await self._broker.subscribe(BROADCASTS, posted)

    async def stop(self) -> None:
        """Hand nothing on any more. What was listened to ends with the broker."""
        if self._task is not None:
            await cancelled(self._task)
            self._task = None

    # -- what is to be said

    def ring(self, user_id: str) -> None:
        """The user's mailbox holds more."""
        self._for(user_id).mail = True

    def show(self, user_id: str, kind: str, frame: bytes) -> None:
        """A frame that may be missed: the newest of its kind is handed on."""
        self._for(user_id).shown[kind] = frame

    def answer(self, user_id: str, connection_id: str, frame: bytes) -> None:
        if self._answers < MAX_ANSWERS:
            self._answers += 1
            self._for(user_id).answers.append((connection_id, frame))

    def _for(self, user_id: str) -> _Pending:
        pending = self._pending.get(user_id)
        if pending is None:
            pending = self._pending[user_id] = _Pending()
            self._wake.set()
        return pending

    # -- saying it

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending, self._answers = self._pending, {}, 0
            try:
                await self._hand_on(pending)
            except (Unavailable, NotPermitted) as error:
                # The bus is away: mail is found by who looks for it, the rest may be missed.
                log.debug("relay.lost", users=len(pending), error=str(error))
            except Exception as error:
                log.error("relay.failed", users=len(pending), exc_info=error)

    async def _hand_on(self, pending: Mapping[str, _Pending]) -> None:
        try:
            where = await self._presence.elsewhere(pending)
        except Unavailable:
            for user_id, one in pending.items():
                with suppress(Invalid):
                    await self._publish(broadcast_subject(user_id), [one.post(user_id)])
            return
        by_pod: dict[str, list[bytes]] = {}
        for user_id, pods in where.items():
            post = pending[user_id].post(user_id)
            for pod_id in pods:
                by_pod.setdefault(pod_id, []).append(post)
        for pod_id, posts in by_pod.items():
            for some in _filled(posts):
                await self._publish(deliver_subject(pod_id), some)

    async def _publish(self, subject: str, posts: list[bytes]) -> None:
        data = b'{"posts":[%b]}' % b",".join(posts)
        data, encoding = self._payloads.wrap(data, subject, seal=self._payloads.seals)
        await self._broker.core_publish(subject, data, {CONTENT_ENCODING: encoding} if encoding else None)


def _filled(posts: Iterable[bytes]) -> Iterable[list[bytes]]:
    """Lists of at most ``MAX_BYTES``, or of one."""
    some: list[bytes] = []
    size = 0
    for post in posts:
        if some and size + len(post) > MAX_BYTES:
            yield some
            some, size = [], 0
        some.append(post)
        size += len(post)
    if some:
        yield some
