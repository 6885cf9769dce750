"""The chunks of one answer put in order: pure, told the time, bounded in number, size and age.

A chunk that comes twice or late is dropped; one that comes early waits for those before it. The marker of a later
attempt ends the attempts before: nothing of them comes after it. What there is no room for is dropped too, the one
farthest ahead first: it is missing then, and asked for again like any other.
"""

from nebengjek_plugins.chat.contracts import ATTEMPT, ResponseChunk, is_restart

MAX_AHEAD = 1000
MAX_BYTES = 256 * 1024


class Reorder:
    """``now`` is in seconds, of any clock that only the caller moves."""

    def __init__(self, *, max_ahead: int = MAX_AHEAD, max_bytes: int = MAX_BYTES) -> None:
        self._max_ahead = max_ahead
        self._max_bytes = max_bytes
        self._early: dict[int, ResponseChunk] = {}
        self._bytes = 0
        self._since: float | None = None
        self.next_id = 0
        """The number of the chunk that comes next."""
        self.over = False
        """The final chunk was handed out."""

    def add(self, chunk: ResponseChunk, now: float) -> list[ResponseChunk]:
        """What can be read now that this chunk is here, in order."""
        if is_restart(chunk) and chunk.chunk_id >= self.next_id:
            self._begin_anew(chunk.chunk_id)
        if self.over or chunk.chunk_id < self.next_id or chunk.chunk_id in self._early:
            return []
        self._early[chunk.chunk_id] = chunk
        self._bytes += _size(chunk)
        ready = self._ready()
        self._make_room()
        if not self._early:
            self._since = None
        elif ready or self._since is None:
            self._since = now
        return ready

    def _begin_anew(self, first: int) -> None:
        self.next_id = first
        self.over = False
        self._since = None
        for chunk_id in [one for one in self._early if one < first]:
            self._drop(chunk_id)

    def _ready(self) -> list[ResponseChunk]:
        ready: list[ResponseChunk] = []
        while not self.over and (chunk := self._early.get(self.next_id)) is not None:
            self._drop(self.next_id)
            self.next_id += 1
            self.over = chunk.is_final
            ready.append(chunk)
        if self.over:
            self._early.clear()
            self._bytes = 0
        return ready

    def _make_room(self) -> None:
        while len(self._early) > self._max_ahead or self._bytes > self._max_bytes:
            self._drop(max(self._early))

    def _drop(self, chunk_id: int) -> None:
        self._bytes -= _size(self._early.pop(chunk_id))

    @property
    def waiting(self) -> int:
        """Chunks that are early."""
        return len(self._early)

    @property
    def missing(self) -> int | None:
        """The number of the first chunk that others wait for: of the last attempt that anything is known of."""
        if not self._early:
            return None
        attempt = max(self._early) // ATTEMPT * ATTEMPT
        return max(self.next_id, attempt)

    def waited(self, now: float) -> float:
        """Seconds for which a chunk has been missing. A clock that was set back makes it 0, not more."""
        return max(0.0, now - self._since) if self._since is not None else 0.0


def _size(chunk: ResponseChunk) -> int:
    return len(chunk.chunk) + 200
