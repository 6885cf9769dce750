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
UNREADABLE = "unreadable"
"""As what frames are counted that are none of ours."""
FREQUENT = {"location.update", "session.ack", UNREADABLE}
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
    """For all phones of this pod. With the fast state away each pod counts by itself.

    ``frames``: how many of each kind in ``FREQUENT``; ``commands``: how many of each other kind.
    """

    def __init__(self, state: FastState, *, frames: Rate, commands: Rate) -> None:
        self._state = state
        self._frames = frames
        self._commands = commands
        self._own = MemoryFastState(SystemClock())
        self._away_until = 0.0

    async def slice(self, user_id: str, kind: str) -> int:
        """How many of ``kind`` the user may say without asking again. Raises RateLimited."""
        rate = self._frames if kind in FREQUENT else self._commands
        return await self._draw(user_id, kind, rate, rate.slice)

    async def count(self, user_id: str, kind: str) -> None:
        """The user says one of ``kind``. Raises RateLimited."""
        await self._draw(user_id, kind, self._frames if kind in FREQUENT else self._commands, 1)

    async def _draw(self, user_id: str, kind: str, rate: Rate, wanted: int) -> int:
        key, state = f"rate:{user_id}:{kind}", self._state
        if time.monotonic() < self._away_until:
            state = self._own
        try:
            taken, wait = await state.draw(key, rate=rate.per_second, burst=rate.burst, wanted=wanted)
        except Unavailable:
            self._away_until = time.monotonic() + AWAY_SECONDS
            taken, wait = await self._own.draw(key, rate=rate.per_second, burst=rate.burst, wanted=wanted)
        if not taken:
            raise RateLimited(f"too many frames {kind}", retry_after=wait)
        return taken


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

    async def refill(self, kind: str) -> None:
        """Count one of ``kind`` after taking another slice. Raises RateLimited."""
        self._saved[kind] = await self._limits.slice(self._user_id, kind) - 1
