"""The memory broker's time: the event loop's, or one that a test moves."""

import asyncio
import heapq
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from nebengjek.clock import ManualClock


class Timer(ABC):
    """Something that will happen unless it is cancelled."""

    @abstractmethod
    def cancel(self) -> None: ...


class BrokerClock(ABC):
    """Everything a broker waits for is measured here, so that 30 s of ack wait can pass in an instant."""

    @abstractmethod
    def time(self) -> float:
        """Unix time in seconds: when a message was stored."""

    @abstractmethod
    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean something."""

    @abstractmethod
    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` at ``when`` by ``monotonic``, not before."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...


class _LoopTimer(Timer):
    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self._handle = handle

    def cancel(self) -> None:
        self._handle.cancel()


class LoopClock(BrokerClock):
    """Real time, by the running event loop."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        # Not loop.call_at: uvloop's clock does not begin where time.monotonic does.
        return _LoopTimer(asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), action))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _VirtualTimer(Timer):
    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class VirtualClock(BrokerClock):
    """Stands still until ``advance``. Moves ``clock``, the one of the services, along when it is given one."""

    ROUNDS = 25
    """Turns of the loop that tasks get after each timer: enough for a chain of that many awaits."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self._clock = clock or ManualClock()
        self._start = self._clock.seconds()
        self._passed = 0.0
        self._timers: list[tuple[float, int, _VirtualTimer]] = []
        self._count = itertools.count()

    def time(self) -> float:
        return self._start + self._passed

    def monotonic(self) -> float:
        return self._passed

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        timer = _VirtualTimer(action)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        timer = self.call_at(self._passed + seconds, wake)
        try:
            await done
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass: each timer that is due acts at its moment, in order, and tasks run in between."""
        target = self._passed + seconds
        await self._let_tasks_run()
        while self._timers and self._timers[0][0] <= target:
            when, _, timer = heapq.heappop(self._timers)
            if timer.action is None:
                continue
            self._move_to(when)
            timer.action()
            await self._let_tasks_run()
        self._move_to(target)
        await self._let_tasks_run()

    def _move_to(self, moment: float) -> None:
        if moment > self._passed:
            self._passed = moment
            self._clock.advance(self._start + moment - self._clock.seconds())

    async def _let_tasks_run(self) -> None:
        for _ in range(self.ROUNDS):
            await asyncio.sleep(0)
