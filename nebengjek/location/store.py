"""What location remembers fast and forgettably: everybody's latest point, the open rides, their paths."""

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from msgspec import Struct

from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, Point
from nebengjek.location.judge import UserState
from nebengjek.location.odometer import Fold

V = TypeVar("V")


class Track(Struct, frozen=True, kw_only=True):
    """An open ride. ``start``: where and when the distance begins; None during the pick-up."""

    ride_id: str
    driver_id: str
    passenger_id: str
    pickup: Location | None = None
    target: Location | None = None
    start: Point | None = None

    def other(self, user_id: str) -> str:
        return self.passenger_id if user_id == self.driver_id else self.driver_id


PathKey = tuple[str, str]
"""Ride and party."""


class Points(ABC):
    """Fast and forgettable: a user's state lives ``ttl`` seconds from its last change, what belongs to a ride longer.

    Raises Unavailable("redis") where there is a server to miss.
    """

    @abstractmethod
    async def load(self, user_ids: Collection[str]) -> dict[str, UserState]:
        """The states of those who have one; the caller may change them and ``save`` them."""

    @abstractmethod
    async def save(self, states: Mapping[str, UserState], ttl: float) -> None:
        """Keep them; a state whose point is older than the kept one does not replace it."""

    @abstractmethod
    async def track(self, track: Track, ttl: float) -> bool:
        """Follow a ride, or follow it further (with ``start``); False when it has ended already."""

    @abstractmethod
    async def untrack(self, ride_id: str, user_ids: Collection[str], ttl: float) -> None:
        """The ride has ended: its path goes, and it cannot be followed again for ``ttl`` seconds."""

    @abstractmethod
    async def tracks(self, user_ids: Collection[str]) -> dict[str, Track]:
        """The open ride of each of these users who has one."""

    @abstractmethod
    async def append(self, points: Mapping[PathKey, Sequence[Point]], ttl: float) -> None:
        """Add points to the paths of parties: each a set, ordered by the phone's time."""

    @abstractmethod
    async def path(self, ride_id: str, user_id: str) -> list[Point]: ...

    @abstractmethod
    async def progress(self, ride_ids: Collection[str]) -> dict[str, Fold]:
        """How far these rides have come, as far as it is known here; the caller may change what he gets."""

    @abstractmethod
    async def set_progress(self, folds: Mapping[str, Fold], ttl: float) -> None: ...

    @abstractmethod
    async def is_blank(self) -> bool:
        """Was everything lost (or nothing ever here) since ``mark``?"""

    @abstractmethod
    async def mark(self) -> None:
        """The open rides have been put in."""


class MemoryPoints(Points):
    """For one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: dict[str, tuple[UserState, float]] = {}
        self._tracks: dict[str, Track] = {}
        self._by_user: dict[str, str] = {}
        self._ended: dict[str, float] = {}
        self._paths: dict[str, dict[str, list[tuple[datetime, Point]]]] = {}
        self._folds: dict[str, Fold] = {}
        self._marked = False

    def __len__(self) -> int:
        """How many phones it knows."""
        return len(self._states)

    async def load(self, user_ids: Collection[str]) -> dict[str, UserState]:
        now, states = self._clock.seconds(), self._states
        found = {}
        for user_id in user_ids:
            kept = states.get(user_id)
            if kept is not None and kept[1] > now:
                found[user_id] = kept[0]
        return found

    async def save(self, states: Mapping[str, UserState], ttl: float) -> None:
        now, kept = self._clock.seconds(), self._states
        ends = now + ttl
        for user_id, state in states.items():
            # Taken out and put in again, the dict is in the order of ends: what is over is at its front.
            before = kept.pop(user_id, None)
            if before is not None and before[1] > now and before[0].point.timestamp > state.point.timestamp:
                state = before[0]
            kept[user_id] = (state, ends)
        _drop_over(kept, now, lambda value: value[1])

    async def track(self, track: Track, ttl: float) -> bool:
        if self._ended.get(track.ride_id, 0.0) > self._clock.seconds():
            return False
        known = self._tracks.get(track.ride_id)
        if known is None or known.start is None:
            self._tracks[track.ride_id] = track
        self._by_user[track.driver_id] = self._by_user[track.passenger_id] = track.ride_id
        return True

    async def untrack(self, ride_id: str, user_ids: Collection[str], ttl: float) -> None:
        now = self._clock.seconds()
        self._ended.pop(ride_id, None)
        self._ended[ride_id] = now + ttl
        _drop_over(self._ended, now, lambda ends: ends)
        for user_id in user_ids:
            if self._by_user.get(user_id) == ride_id:
                del self._by_user[user_id]
        self._tracks.pop(ride_id, None)
        self._paths.pop(ride_id, None)
        self._folds.pop(ride_id, None)

    async def tracks(self, user_ids: Collection[str]) -> dict[str, Track]:
        if not self._tracks:
            return {}
        found = {}
        for user_id in user_ids:
            ride_id = self._by_user.get(user_id)
            if ride_id is not None:
                found[user_id] = self._tracks[ride_id]
        return found

    async def append(self, points: Mapping[PathKey, Sequence[Point]], ttl: float) -> None:
        for (ride_id, user_id), new in points.items():
            path = self._paths.setdefault(ride_id, {}).setdefault(user_id, [])
            for point in new:
                item = (point.timestamp, point)
                if not path or path[-1][0] < point.timestamp:
                    path.append(item)
                elif item not in path:
                    insort(path, item, key=lambda known: known[0])

    async def path(self, ride_id: str, user_id: str) -> list[Point]:
        return [point for _, point in self._paths.get(ride_id, {}).get(user_id, [])]

    async def progress(self, ride_ids: Collection[str]) -> dict[str, Fold]:
        return {ride_id: self._folds[ride_id] for ride_id in ride_ids if ride_id in self._folds}

    async def set_progress(self, folds: Mapping[str, Fold], ttl: float) -> None:
        for ride_id, fold in folds.items():
            if ride_id in self._tracks:
                self._folds[ride_id] = fold

    async def is_blank(self) -> bool:
        return not self._marked

    async def mark(self) -> None:
        self._marked = True


def _drop_over(kept: dict[str, V], now: float, ends: Callable[[V], float]) -> None:
    """Forget the values at the front whose time is over."""
    while kept:
        oldest = next(iter(kept))
        if ends(kept[oldest]) > now:
            return
        del kept[oldest]
