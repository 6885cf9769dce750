"""A circuit breaker for one dependency: closed, open, half-open.

Our own in some hundred lines because the libraries decide *whether to call*, while here a loop must *wait its turn*:
while the breaker is open nobody passes, after a delay exactly one does, and its outcome decides for the rest.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

from nebengjek.errors import Unavailable

Sleep = Callable[[float], Coroutine[Any, Any, None]]


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """The delay doubles with each failure in a row from ``first`` to ``longest`` seconds."""

    def __init__(
        self,
        dependency: str,
        sleep: Callable[[float], Coroutine[Any, Any, None]],
        *,
        first: float = 0.5,
        longest: float = 5.0,
    ) -> None:
        self.dependency = dependency
        self.state = BreakerState.CLOSED
        self._sleep = sleep
        self._first = first
        self._longest = longest
        self._delay = first
        self._probing = False
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self, stopping: asyncio.Event) -> AsyncIterator[None]:
        """Wait until the block may run. An Unavailable of this dependency that leaves it opens the breaker.

        Raises Unavailable instead of running it when ``stopping`` is set while it waits.
        """
        probe = await self._wait(stopping)
        try:
            yield
        except Unavailable as error:
            if error.dependency == self.dependency:
                self._failed(probe)
            elif probe:
                self._succeeded()
            raise
        except asyncio.CancelledError:
            # Cut off, not answered: somebody else has to find out.
            if probe:
                self.state = BreakerState.OPEN
                self._release()
            raise
        except BaseException:
            if probe:
                self._succeeded()
            raise
        if probe:
            self._succeeded()

    def trip(self) -> None:
        """Open it: somebody found that the dependency does not answer."""
        self._failed(False)

    async def closed(self) -> None:
        """Return when the breaker is closed."""
        while self.state is not BreakerState.CLOSED:
            await self._changed.wait()

    async def _wait(self, stopping: asyncio.Event) -> bool:
        while self.state is not BreakerState.CLOSED:
            if stopping.is_set():
                raise Unavailable(self.dependency)
            if self._probing:
                await first_of(self._changed.wait(), stopping.wait())
                continue
            self._probing = True
            try:
                await first_of(self._sleep(self._delay), stopping.wait())
                if stopping.is_set():
                    raise Unavailable(self.dependency)
            except BaseException:
                self._release()
                raise
            self.state = BreakerState.HALF_OPEN
            return True
        return False

    def _failed(self, probe: bool) -> None:
        self.state = BreakerState.OPEN
        if probe:
            self._delay = min(self._delay * 2, self._longest)
            self._release()

    def _succeeded(self) -> None:
        self._delay = self._first
        self.state = BreakerState.CLOSED
        self._release()

    def _release(self) -> None:
        self._probing = False
        self._changed.set()
        self._changed = asyncio.Event()


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of them is done, and end the others. Raises what that one raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
