"""Mailboxes on a Redis or Valkey, for all pods: a frame takes its seq in the step that appends it, on the server."""

from collections.abc import Sequence
from typing import Any

from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.faststate import RedisClient, RedisScript
from nebengjek.realtime.mailbox import (
    KEEP_FRAMES,
    KEEP_IDS,
    KEEP_SECONDS,
    Forgotten,
    Frame,
    Head,
    Mailbox,
)

COUNT_SECONDS = 30 * 24 * 3600.0
"""How long a silent mailbox keeps its count: a phone that comes back after a week has then missed nothing."""

# Of a user: "mail" is his count (a hash of epoch and seq), "mail-frames" a list of "<milliseconds> <frame>" whose last
# one has the count as its seq (so an index is a seq), "mail-ids" the message ids, scored by their seq.
# KEYS: count, frames, ids. ARGV: the message id, a frame without its end, now in ms, an epoch for a mailbox that is
# new, how long to keep frames and the count in ms, how many frames and ids to keep.
_APPEND = """
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[4]) == 1 then redis.call('DEL', KEYS[2], KEYS[3]) end
local known = redis.call('ZSCORE', KEYS[3], ARGV[1])
if known then return tonumber(known) end
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('RPUSH', KEYS[2], ARGV[3] .. ' ' .. ARGV[2] .. string.format('%d', seq) .. '}')
redis.call('ZADD', KEYS[3], seq, ARGV[1])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[7]), -1)
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -tonumber(ARGV[8]) - 1)
local limit = tonumber(ARGV[3]) - tonumber(ARGV[5])
while true do
  local oldest = redis.call('LINDEX', KEYS[2], 0)
  if tonumber(string.match(oldest, '^%d+')) >= limit then break end
  redis.call('LPOP', KEYS[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return seq
"""

# KEYS: count, frames. ARGV: an epoch for a mailbox that is new, how long to keep the count.
_HEAD = """
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {redis.call('HGET', KEYS[1], 'epoch'), tonumber(redis.call('HGET', KEYS[1], 'seq') or 0),
        redis.call('LLEN', KEYS[2])}
"""

# KEYS: count, frames. ARGV: the seq that is known, how many frames at most. Answers the epoch, the last seq, how many
# frames there are, the first ones beyond.
_AFTER = """
local last = tonumber(redis.call('HGET', KEYS[1], 'seq') or 0)
local beyond = last - tonumber(ARGV[1])
local kept, frames = redis.call('LLEN', KEYS[2]), {}
if beyond > 0 and beyond <= kept then
  local first = kept - beyond
  frames = redis.call('LRANGE', KEYS[2], first, first + tonumber(ARGV[2]) - 1)
end
return {redis.call('HGET', KEYS[1], 'epoch'), last, kept, frames}
"""

# KEYS: count, frames. ARGV: the seq up to which the phone has everything.
_TRIM = """
local last = tonumber(redis.call('HGET', KEYS[1], 'seq') or 0)
local beyond = last - tonumber(ARGV[1])
if beyond <= 0 then redis.call('DEL', KEYS[2]) else redis.call('LTRIM', KEYS[2], -beyond, -1) end
return 1
"""


# KEYS: counts.
_COUNTS = """
local counts = {}
for i, key in ipairs(KEYS) do counts[i] = redis.call('HMGET', key, 'epoch', 'seq') end
return counts
"""


class RedisMailbox(Mailbox):
    """Does not own ``client``. A server that has lost its memory counts anew in another epoch."""

    def __init__(self, client: RedisClient, clock: Clock) -> None:
        self._clock = clock
        self._append = RedisScript(client, _APPEND)
        self._head = RedisScript(client, _HEAD)
        self._after = RedisScript(client, _AFTER)
        self._trim = RedisScript(client, _TRIM)
        self._counts = RedisScript(client, _COUNTS)

    async def append(self, user_id: str, message_id: str, event: str, data: bytes) -> int:
        begun = b'{"event":"%b","data":%b,"seq":' % (event.encode(), data)
        now = round(self._clock.seconds() * 1000)
        kept = (_ms(KEEP_SECONDS), _ms(COUNT_SECONDS), KEEP_FRAMES, KEEP_IDS)
        keys = [*_keys(user_id), f"mail-ids:{user_id}"]
        return int(await self._append(keys, message_id, begun, now, uuid7(), *kept))

    async def head(self, user_id: str) -> Head:
        epoch, last, kept = await self._head(_keys(user_id), uuid7(), _ms(COUNT_SECONDS))
        return Head(epoch.decode(), last, last + 1 - kept)

    async def after(self, user_id: str, seq: int, epoch: str, at_most: int = KEEP_FRAMES) -> list[Frame]:
        found: tuple[bytes | None, int, int, list[Any]] = await self._after(_keys(user_id), seq, at_most)
        of, last, kept, frames = found
        if of is None or of.decode() != epoch:
            raise Forgotten(f"the mailbox has begun anew since {epoch}")
        if kept < last - seq:
            raise Forgotten(f"what follows {seq} is not kept any more")
        return [Frame(number, frame.partition(b" ")[2]) for number, frame in enumerate(frames, start=seq + 1)]

    async def counts(self, user_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        found = await self._counts([f"mail:{user_id}" for user_id in user_ids])
        counts = zip(user_ids, found, strict=True)
        return {user_id: (epoch.decode(), int(seq or 0)) for user_id, (epoch, seq) in counts if epoch is not None}

    async def trim(self, user_id: str, seq: int) -> None:
        await self._trim(_keys(user_id), seq)


def _keys(user_id: str) -> list[str]:
    return [f"mail:{user_id}", f"mail-frames:{user_id}"]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
