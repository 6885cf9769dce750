"""Many small things said as one event: by time or by number, whichever comes first."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
M = TypeVar("M")


class Gatherer(Generic[T, M]):
    """Collects items and publishes them as one event: ``size`` of them, or what came within ``seconds``.

    Made by ``MessageBus.gather``, whose drain publishes what is left. Order is kept.
    """

    def __init__(
        self,
        publish: Callable[[M], Awaitable[None]],
        make: Callable[[list[T]], M],
        sleep: Callable[[float], Awaitable[None]],
        *,
        size: int,
        seconds: float,
    ) -> None:
        self._publish = publish
        self._make = make
        self._sleep = sleep
        self._size = size
        self._seconds = seconds
        self._items: list[T] = []
        self._timer: asyncio.Task[None] | None = None

    async def add(self, item: T) -> None:
        """Take it along; waits only where the bus's window is full."""
        self._items.append(item)
        if len(self._items) >= self._size:
            await self.flush()
        elif self._timer is None:
            self._timer = asyncio.create_task(self._later(), name="gatherer")

    async def flush(self) -> None:
        """Publish what there is, now."""
        if self._timer is not None and self._timer is not asyncio.current_task():
            self._timer.cancel()
        self._timer = None
        items, self._items = self._items, []
        if items:
            await self._publish(self._make(items))

    async def _later(self) -> None:
        await self._sleep(self._seconds)
        await self.flush()
