"""Core publish and subscribe of the memory broker: at most once, to whoever listens now (rule U3)."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import structlog

from nebengjek.bus import interface
from nebengjek.bus.interface import CoreHandler, Subscription
from nebengjek.bus.memory.subjects import SubjectTable
from nebengjek.bus.messages import CoreMessage, Headers

INBOX = "_INBOX."

log = structlog.stdlib.get_logger("nebengjek.bus")


class CoreListener(ABC):
    """Somebody who listens to ``subject``, alone or in a queue group."""

    subject: str
    queue: str | None

    @property
    @abstractmethod
    def connected(self) -> bool: ...

    @abstractmethod
    def deliver(self, message: CoreMessage) -> None: ...


class CoreSubscription(CoreListener, Subscription):
    """One task that calls the handler for one message after the other."""

    def __init__(
        self, router: "CoreRouter", subject: str, handler: CoreHandler, queue: str | None, connected: Callable[[], bool]
    ) -> None:
        self.subject = subject
        self.queue = queue
        self._router = router
        self._handler = handler
        self._connected = connected
        self._pending: deque[CoreMessage] = deque()
        self._limit = interface.CORE_PENDING
        self._is_slow = False
        self._wake: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name=f"subscription {subject}")

    @property
    def connected(self) -> bool:
        return self._connected()

    def deliver(self, message: CoreMessage) -> None:
        if len(self._pending) >= self._limit:
            if not self._is_slow:
                log.error("subscription.slow", subject=self.subject, lost="what comes until it has caught up")
            self._is_slow = True
            return
        self._is_slow = False
        self._pending.append(message)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        while True:
            while self._pending:
                try:
                    await self._handler(self._pending.popleft())
                except Exception as error:
                    # One bad message must not end the subscription; the loop's handler reports it.
                    context = {"message": f"a core handler failed: {self.subject}", "exception": error}
                    self._loop.call_exception_handler(context)
            self._wake = self._loop.create_future()
            await self._wake

    async def unsubscribe(self) -> None:
        self._router.remove(self)
        if self._task is asyncio.current_task():
            # A handler that ends its own subscription: let it finish, nothing comes after it.
            self._pending.clear()
            self._loop.call_soon(self._task.cancel)
            return
        self._task.cancel()
        await asyncio.wait((self._task,))


class CoreRouter:
    """Who listens to what; of a queue group one member gets each message, in turn."""

    def __init__(self) -> None:
        self._table: SubjectTable[CoreListener] = SubjectTable()
        self._turn = 0
        self.watchers: set[Callable[[], None]] = set()
        """Told when somebody began or ended to listen."""
        self.inboxes: dict[str, Callable[[CoreMessage], None]] = {}
        """Where replies go: an exact subject and what to do with the message."""

    def add(self, listener: CoreListener) -> None:
        self._table.add(listener.subject, listener)
        self.changed()

    def remove(self, listener: CoreListener) -> None:
        self._table.remove(listener)
        self.changed()

    def changed(self) -> None:
        for watcher in tuple(self.watchers):
            watcher()

    def by_prefix(self, prefix: str) -> bool:
        """Do all subjects that are ``prefix`` and one more token have the same listeners?"""
        return prefix != INBOX and self._table.by_prefix(prefix)

    def listened(self, subject: str) -> bool:
        return subject in self.inboxes or any(one.connected for one in self._table.match(subject))

    def awaited(self, subject: str, queue: str | None) -> bool:
        """Does somebody listen to exactly this, in exactly this group?"""
        return any(
            one.connected and one.subject == subject and one.queue == queue for one in self._table.match(subject)
        )

    def deliver(
        self, subject: str, data: bytes, headers: Headers, reply: str | None, *, about: str | None = None
    ) -> bool:
        """Hand the message to all that listen; False when nobody does. ``about``: the subject that they see."""
        found = self._table.match(subject)
        inbox = self.inboxes.get(subject) if self.inboxes else None
        if not found and inbox is None:
            return False
        message = CoreMessage(subject=about or subject, data=data, headers=dict(headers), reply=reply)
        if inbox is not None:
            inbox(message)
        groups: dict[str, list[CoreListener]] = {}
        heard = inbox is not None
        for subscription in found:
            if not subscription.connected:
                continue
            heard = True
            if subscription.queue is None:
                subscription.deliver(message)
            else:
                groups.setdefault(subscription.queue, []).append(subscription)
        for members in groups.values():
            self._turn += 1
            members[self._turn % len(members)].deliver(message)
        return heard
