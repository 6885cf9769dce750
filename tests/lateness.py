"""How late this machine is: a busy one runs nothing when it is due, neither us nor the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

TICK = 0.01
NOTHING = 0.003
"""Seconds of which nobody is late who has the machine for himself."""


class Lateness:
    """Watches the loop for as long as it is entered.

    ``seconds``: what all its ticks together were late. ``allowance``: what somebody else may be late in the same
    time, who waits for several processes one after the other.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._watch: asyncio.Task[None] | None = None

    @property
    def allowance(self) -> float:
        return 3 * self.seconds

    async def __aenter__(self) -> "Lateness":
        self._watch = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self.seconds += max(0.0, loop.time() - due - NOTHING)


@asynccontextmanager
async def at_most(seconds: float) -> AsyncIterator[None]:
    """Fails when the block takes longer, as far as that is not this machine's doing."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Lateness() as lateness:
        yield
        took = loop.time() - began
        assert took < seconds + lateness.allowance, f"it took {took:.2f} s"
