"""Which users have a phone connected: a lease per connection, renewed by its pod."""

from abc import ABC, abstractmethod
from collections.abc import Collection

from nebengjek.clock import Clock


class Presence(ABC):
    """As one pod sees it. Asking raises Unavailable("redis") where there is a server to miss; telling never does."""

    @abstractmethod
    async def attach(self, user_id: str, connection_id: str) -> None:
        """A connection began on this pod."""

    @abstractmethod
    async def detach(self, user_id: str, connection_id: str) -> None:
        """A connection of this pod ended; only itself is removed."""

    @abstractmethod
    async def beat(self) -> None:
        """Say that this pod is there, each two seconds; and forget what the pods held that do not say so any more."""

    @abstractmethod
    async def elsewhere(self, user_ids: Collection[str]) -> dict[str, set[str]]:
        """The other pods that hold connections of these users; who has none is left out."""

    @abstractmethod
    async def connected(self, user_ids: Collection[str]) -> set[str]:
        """Those of ``user_ids`` with at least one connection on any pod."""

    @abstractmethod
    async def lapsed(self, grace: float) -> list[str]:
        """Users whose last connection ended more than ``grace`` seconds ago, each told once, and to one pod."""


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
        connections = self._connections.get(user_id)
        if connections is None or connection_id not in connections:
            return
        connections.discard(connection_id)
        if not connections:
            del self._connections[user_id]
            self._gone[user_id] = self._clock.seconds()

    async def beat(self) -> None:
        """Nobody else listens."""

    async def elsewhere(self, user_ids: Collection[str]) -> dict[str, set[str]]:
        return {}

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
