"""Where fast state lies in tests: in this process, or on the real Valkey of the session; both can be aged."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from nebengjek.clock import ManualClock
from nebengjek.faststate import connect_redis

START = datetime(2025, 3, 4, 5, 0, tzinfo=UTC)


class Backend(ABC):
    """``clock`` is the application's; ``advance`` also moves what the backend itself forgets by."""

    def __init__(self) -> None:
        self.clock = ManualClock(START)
        self.client: Any = None

    @abstractmethod
    async def advance(self, seconds: float) -> None: ...


class Memory(Backend):
    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


class Valkey(Backend):
    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = client

    async def advance(self, seconds: float) -> None:
        """Take ``seconds`` off the life that each key has left: time passes without waiting for it."""
        self.clock.advance(seconds)
        async for key in self.client.scan_iter():
            left = await self.client.pttl(key)
            if left > 0:
                await self.client.pexpire(key, max(0, left - round(seconds * 1000)))


@asynccontextmanager
async def backend(url: str | None) -> AsyncIterator[Backend]:
    """An empty one; without a URL in this process."""
    if url is None:
        yield Memory()
        return
    client = connect_redis(url)
    try:
        await client.flushdb()
        yield Valkey(client)
    finally:
        await client.aclose()
