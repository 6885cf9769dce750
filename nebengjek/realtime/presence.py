"""Which users have a phone connected: a lease per connection, renewed by its pod."""

from abc import ABC, abstractmethod
from collections.abc import Collection

from nebengjek.clock import Clock


class Presence(ABC):
    @abstractmethod
    async def attach(self, user_id: str, connection_id: str) -> None:
        """A connection began."""

    @abstractmethod
    async def detach(self, user_id: str, connection_id: str) -> None:
        """A connection ended; only itself is removed."""

    @abstractmethod
    async def connected(self, user_ids: Collection[str]) -> set[str]:
        """Those of ``user_ids`` with at least one connection on any pod."""

    @abstractmethod
    async def lapsed(self, grace: float) -> list[str]:
        """Users whose last connection ended more than ``grace`` seconds ago, each told once."""


class MemoryPresence(Presence):
    """For one process: its end is the end of all leases."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._connections: dict[str, set[str]] = {}
        self._gone: dict[str, float] = {}

    async def attach(self, user_id: str, connection_id: str) -> None:
        self._connections.setdefault(user_id, set()).add(connection_id)
        self._gone.pop(user_id, None)

    async def detach(self, user_id: str, connection_id: str) -> None:
        connections = self._connections.get(user_id, set())
        connections.discard(connection_id)
        if not connections:
            self._connections.pop(user_id, None)
            self._gone[user_id] = self._clock.seconds()

    async def connected(self, user_ids: Collection[str]) -> set[str]:
        return {user_id for user_id in user_ids if user_id in self._connections}

    async def lapsed(self, grace: float) -> list[str]:
        limit = self._clock.seconds() - grace
        # _gone is in order of going: a user who returns and goes again is put at its end.
        lapsed = []
        for user_id, since in list(self._gone.items()):
            if since > limit:
                break
            lapsed.append(user_id)
            del self._gone[user_id]
        return lapsed
