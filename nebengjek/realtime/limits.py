"""How often a user may say what, wherever his phones are connected.

A bucket for each user and kind of frame lies in the fast state, for all pods. A phone takes a slice out of it at a
time, so that most of its frames ask nobody: a point costs no more than a number that is counted down.
"""

import time

from msgspec import Struct

from nebengjek.clock import SystemClock
from nebengjek.errors import RateLimited, Unavailable
from nebengjek.faststate import FastState, MemoryFastState

SLICES = 4
"""A slice is this part of what may be saved up: what one phone has taken and not used, another one lacks."""
AWAY_SECONDS = 1.0
"""So long a fast state that did not answer is not asked again."""


class Rate(Struct, frozen=True, kw_only=True):
    """So many a second; at most ``burst`` saved up."""

    per_second: float
    burst: float

    @property
    def slice(self) -> int:
        return max(1, int(self.burst / SLICES))


class Limits:
    """For all phones of this pod. With the fast state away each pod counts by itself."""

    def __init__(self, state: FastState) -> None:
        self._state = state
        self._own = MemoryFastState(SystemClock())
        self._away_until = 0.0

    async def draw(self, user_id: str, kind: str, rate: Rate) -> tuple[int, float]:
        """(how many of ``kind`` the user may say without asking again, else the seconds until he may say one)."""
        key = f"rate:{user_id}:{kind}"
        if time.monotonic() >= self._away_until:
            try:
                return await self._state.draw(key, rate=rate.per_second, burst=rate.burst, wanted=rate.slice)
            except Unavailable:
                self._away_until = time.monotonic() + AWAY_SECONDS
        return await self._own.draw(key, rate=rate.per_second, burst=rate.burst, wanted=rate.slice)


class Allowance:
    """One phone's slices."""

    __slots__ = ("_limits", "_saved", "_user_id")

    def __init__(self, limits: Limits, user_id: str) -> None:
        self._limits = limits
        self._user_id = user_id
        self._saved: dict[str, int] = {}

    def spend(self, kind: str) -> bool:
        """Count one of ``kind``; False: ask with ``refill``."""
        saved = self._saved.get(kind)
        if not saved:
            return False
        self._saved[kind] = saved - 1
        return True

    async def refill(self, kind: str, rate: Rate) -> None:
        """Count one of ``kind`` after taking another slice. Raises RateLimited."""
        taken, wait = await self._limits.draw(self._user_id, kind, rate)
        if not taken:
            raise RateLimited(f"too many frames {kind}", retry_after=wait)
        self._saved[kind] = taken - 1
