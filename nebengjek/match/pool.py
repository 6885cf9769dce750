"""Who is free and where, and who is searching where: forgettable, rebuilt from the facts when it is lost.

Each driver goes by his own last sign of life; nothing expires the whole. Distances are great-circle kilometres.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import datetime

from nebengjek.contracts.geo import Location, Place
from nebengjek.contracts.users import VehicleType
from nebengjek.match.dispatch import Candidate
from nebengjek.match.grid import Entry, Grid


class Pool(ABC):
    """Raises Unavailable("redis") where there is a server to miss."""

    @abstractmethod
    async def join(self, driver_id: str, location: Location, vehicle_type: VehicleType, seen: datetime) -> None:
        """Put a driver in, or anew: what was known of him is replaced."""

    @abstractmethod
    async def leave(self, driver_id: str) -> None: ...

    @abstractmethod
    async def move(self, points: Sequence[tuple[str, Place, datetime]]) -> list[str]:
        """Move those who are in the pool and were last seen before their point; return who moved, each once."""

    @abstractmethod
    async def nearest(
        self,
        location: Location,
        radius_km: float,
        limit: int,
        *,
        vehicle_type: VehicleType | None = None,
        seen_after: datetime | None = None,
        exclude: Collection[str] = (),
    ) -> list[Candidate]:
        """Up to ``limit`` drivers within the radius, nearest first, seen later than ``seen_after``."""

    @abstractmethod
    async def drivers(self) -> list[str]: ...

    @abstractmethod
    async def size(self) -> int:
        """How many drivers are in."""

    @abstractmethod
    async def forget(self, before: datetime) -> list[str]:
        """Take out who was last seen before then; return whom."""

    @abstractmethod
    async def open_search(self, search_id: str, location: Location) -> None:
        """Put a search in, or move it."""

    @abstractmethod
    async def close_search(self, search_id: str) -> None: ...

    @abstractmethod
    async def searches_near(self, location: Place, radius_km: float) -> list[str]:
        """Nearest first."""

    @abstractmethod
    async def is_blank(self) -> bool:
        """Nobody has marked it since it began: it is new, or has forgotten everything."""

    @abstractmethod
    async def mark(self) -> None:
        """It holds who belongs there."""


class _Driver:
    __slots__ = ("location", "seen", "vehicle_type")

    def __init__(self, location: Location, vehicle_type: VehicleType, seen: datetime) -> None:
        self.location = location
        self.vehicle_type = vehicle_type
        self.seen = seen


class MemoryPool(Pool):
    """In this process, on a grid: a search looks at the cells around it."""

    def __init__(self) -> None:
        self.grid: Grid[_Driver] = Grid()
        self._searches: Grid[None] = Grid()
        self._blank = True

    async def join(self, driver_id: str, location: Location, vehicle_type: VehicleType, seen: datetime) -> None:
        driver = _Driver(location, vehicle_type, seen)
        self.grid.put(driver_id, location.latitude, location.longitude, driver)

    async def leave(self, driver_id: str) -> None:
        self.grid.remove(driver_id)

    async def move(self, points: Sequence[tuple[str, Place, datetime]]) -> list[str]:
        known = self.grid.entries
        moved: dict[str, None] = {}
        for user_id, location, seen in points:
            entry = known.get(user_id)  # most phones are not in the pool, and this is all they cost
            if entry is not None and seen > entry.value.seen:
                entry.value.seen = seen
                entry.value.location = Location(latitude=location.latitude, longitude=location.longitude)
                self.grid.move(entry, location.latitude, location.longitude)
                moved[user_id] = None
        return list(moved)

    async def nearest(
        self,
        location: Location,
        radius_km: float,
        limit: int,
        *,
        vehicle_type: VehicleType | None = None,
        seen_after: datetime | None = None,
        exclude: Collection[str] = (),
    ) -> list[Candidate]:
        excluded = frozenset(exclude)

        def fits(entry: Entry[_Driver]) -> bool:
            driver = entry.value
            return (
                (vehicle_type is None or driver.vehicle_type == vehicle_type)
                and (seen_after is None or driver.seen > seen_after)
                and entry.id not in excluded
            )

        found = self.grid.nearest(location.latitude, location.longitude, radius_km, limit, fits)
        return [
            Candidate(
                driver_id=entry.id,
                location=entry.value.location,
                distance_km=km,
                vehicle_type=entry.value.vehicle_type,
            )
            for km, entry in found
        ]

    async def drivers(self) -> list[str]:
        return list(self.grid.entries)

    async def size(self) -> int:
        return len(self.grid)

    async def forget(self, before: datetime) -> list[str]:
        gone = [entry.id for entry in self.grid.entries.values() if entry.value.seen < before]
        for driver_id in gone:
            self.grid.remove(driver_id)
        return gone

    async def open_search(self, search_id: str, location: Location) -> None:
        self._searches.put(search_id, location.latitude, location.longitude, None)

    async def close_search(self, search_id: str) -> None:
        self._searches.remove(search_id)

    async def searches_near(self, location: Place, radius_km: float) -> list[str]:
        if not self._searches.entries:
            return []
        everybody = len(self._searches)
        near = self._searches.nearest(location.latitude, location.longitude, radius_km, everybody, lambda _: True)
        return [entry.id for _, entry in near]

    async def is_blank(self) -> bool:
        return self._blank

    async def mark(self) -> None:
        self._blank = False
