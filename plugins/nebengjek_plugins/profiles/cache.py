"""Profiles as they were read last, in this process or in the Redis that all pods share.

An entry that is forgotten leaves a mark for some seconds: whoever had read the row before it changed finds the mark
and does not put the old one back.
"""

from typing import TypeVar

import msgspec

from nebengjek.clock import Clock
from nebengjek.faststate import FastState

T = TypeVar("T")

_MARK = b"-"
_MARK_SECONDS = 10.0
_PATIENCE = 5.0
"""Who took longer to read than this keeps nothing: the mark may be gone already."""


class Cache:
    def __init__(self, state: FastState, clock: Clock, *, ttl: float) -> None:
        self._state = state
        self._clock = clock
        self._ttl = ttl

    async def get(self, user_id: str, kind: type[T]) -> T | None:
        kept = await self._state.get(_key(user_id))
        return None if kept is None or kept == _MARK else msgspec.json.decode(kept, type=kind)

    async def keep(self, user_id: str, value: object, *, began: float) -> None:
        """``began``: of the reading, in seconds of the clock; before that the row was not looked at."""
        if self._clock.seconds() - began < _PATIENCE:
            await self._state.put(_key(user_id), msgspec.json.encode(value), self._ttl, if_absent=True)

    async def forget(self, user_id: str) -> None:
        """The row has changed: nobody reads the old one any more."""
        await self._state.put(_key(user_id), _MARK, _MARK_SECONDS)


def _key(user_id: str) -> str:
    return f"profile:{user_id}"
