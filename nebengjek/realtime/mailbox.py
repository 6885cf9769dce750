"""What a user's phones must not miss: numbered frames, each once per message id, kept for a day."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.errors import NebengJekError

KEEP_SECONDS = 24 * 3600.0
KEEP_FRAMES = 1000
KEEP_IDS = 2 * KEEP_FRAMES
"""Message ids that are remembered, also of frames that are trimmed: those must not come again."""


class Forgotten(NebengJekError):
    """The mailbox has lost its count, or no longer holds all that was asked for: only a new snapshot helps."""


class Frame(NamedTuple):
    seq: int
    data: bytes
    """The whole frame as it is sent, its ``seq`` in it."""


class Head(NamedTuple):
    """``epoch`` changes when the mailbox forgot its count; ``first``: the oldest seq that can be replayed."""

    epoch: str
    last_seq: int
    first: int


class Mailbox(ABC):
    """Raises Unavailable("redis") where there is a server to miss."""

    @abstractmethod
    async def append(self, user_id: str, message_id: str, event: str, data: bytes) -> int:
        """Append a frame and give it its seq, in one step; the same message id again answers the seq it has."""

    @abstractmethod
    async def head(self, user_id: str) -> Head:
        """Where the mailbox stands; its epoch stays from here on, also while nothing is in it."""

    @abstractmethod
    async def after(self, user_id: str, seq: int, epoch: str, at_most: int = KEEP_FRAMES) -> list[Frame]:
        """The first ``at_most`` frames beyond ``seq``, in order and without a gap. Raises Forgotten."""

    @abstractmethod
    async def counts(self, user_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Epoch and last seq of each user who has a mailbox."""

    @abstractmethod
    async def trim(self, user_id: str, seq: int) -> None:
        """The phone has everything up to ``seq``."""


class _Box:
    __slots__ = ("frames", "ids", "last_seq")

    def __init__(self) -> None:
        self.last_seq = 0
        self.frames: deque[tuple[Frame, float]] = deque()
        self.ids: dict[str, int] = {}


class MemoryMailbox(Mailbox):
    """For one process; its epoch is new with each start."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = uuid7()
        self._boxes: dict[str, _Box] = {}

    async def append(self, user_id: str, message_id: str, event: str, data: bytes) -> int:
        box = self._boxes.setdefault(user_id, _Box())
        known = box.ids.get(message_id)
        if known is not None:
            return known
        box.last_seq = seq = box.last_seq + 1
        frame = b'{"event":"%b","data":%b,"seq":%d}' % (event.encode(), data, seq)
        now = self._clock.seconds()
        box.frames.append((Frame(seq, frame), now))
        box.ids[message_id] = seq
        while len(box.frames) > KEEP_FRAMES or box.frames[0][1] < now - KEEP_SECONDS:
            box.frames.popleft()
        while len(box.ids) > KEEP_IDS:
            del box.ids[next(iter(box.ids))]
        return seq

    async def head(self, user_id: str) -> Head:
        box = self._boxes.get(user_id)
        if box is None:
            return Head(self._epoch, 0, 1)
        return Head(self._epoch, box.last_seq, box.last_seq + 1 - len(box.frames))

    async def after(self, user_id: str, seq: int, epoch: str, at_most: int = KEEP_FRAMES) -> list[Frame]:
        if epoch != self._epoch:
            raise Forgotten(f"the mailbox has begun anew since {epoch}")
        box = self._boxes.get(user_id)
        if box is None or box.last_seq <= seq:
            return []
        # They are numbered without gaps: so many from the end.
        newest = [frame for frame, _ in islice(reversed(box.frames), box.last_seq - seq)]
        if len(newest) < box.last_seq - seq:
            raise Forgotten(f"what follows {seq} is not kept any more")
        newest.reverse()
        return newest[:at_most]

    async def counts(self, user_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        return {user_id: (self._epoch, self._boxes[user_id].last_seq) for user_id in user_ids if user_id in self._boxes}

    async def trim(self, user_id: str, seq: int) -> None:
        box = self._boxes.get(user_id)
        while box is not None and box.frames and box.frames[0][0].seq <= seq:
            box.frames.popleft()
