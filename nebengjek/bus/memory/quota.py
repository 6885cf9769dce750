"""What the memory broker's account may use: streams and consumers when they are made, bytes when they are stored."""

from collections.abc import Callable, Iterable

from nebengjek.bus.errors import ApiError, PublishRefused
from nebengjek.bus.interface import Account, Allowance
from nebengjek.bus.specs import Storage, StreamInfo, StreamSpec


class Quota:
    """``allowed``: of all streams together; of it they reserve their ``max_bytes``."""

    def __init__(self, allowed: Allowance, streams: Callable[[], Iterable[StreamInfo]]) -> None:
        self._allowed = allowed
        self._streams = streams
        self._limits = {Storage.MEMORY: allowed.memory, Storage.FILE: allowed.storage}

    def account(self) -> Account:
        specs = [info.spec for info in self._streams()]
        return Account(
            allowed=self._allowed,
            reserved_memory=_reserved(specs, Storage.MEMORY),
            reserved_storage=_reserved(specs, Storage.FILE),
            streams=len(specs),
        )

    def check_stream(self, spec: StreamSpec) -> None:
        """Raises ApiError 10027 (streams), 10026 (consumers), 10028 (memory), 10047 (storage)."""
        allowed = self._allowed
        others = [info.spec for info in self._streams() if info.spec.name != spec.name]
        if 0 <= allowed.streams <= len(others):
            raise ApiError(10027, "maximum number of streams reached")
        if 0 <= allowed.consumers < spec.max_consumers:
            raise ApiError(10026, "maximum consumers limit reached")
        limit = self._limits[spec.storage]
        if 0 <= limit < _reserved([*others, spec], spec.storage) and spec.max_bytes > 0:
            if spec.storage is Storage.MEMORY:
                raise ApiError(10028, "insufficient memory resources available", status=500)
            raise ApiError(10047, "insufficient storage resources available", status=500)

    def check_consumers(self, count: int) -> None:
        """So many there are on the stream. Raises ApiError 10026."""
        if 0 <= self._allowed.consumers <= count:
            raise ApiError(10026, "maximum consumers limit reached")

    def check_room(self, storage: Storage, size: int) -> None:
        """Raises PublishRefused 10002."""
        used = sum(info.bytes for info in self._streams() if info.spec.storage is storage)
        if 0 <= self._limits[storage] < used + size:
            raise PublishRefused(10002, "resource limits exceeded for account")


def _reserved(specs: Iterable[StreamSpec], storage: Storage) -> int:
    return sum(max(0, spec.max_bytes) for spec in specs if spec.storage is storage)
