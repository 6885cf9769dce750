"""The fast half of location's memory on a Redis or Valkey, for all pods; see ``store.Points`` for the promises."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from nebengjek.contracts.geo import Point
from nebengjek.faststate import PREFIX, RedisClient, RedisScript, reaching_redis
from nebengjek.location.judge import UserState
from nebengjek.location.odometer import Fold
from nebengjek.location.store import PathKey, Points, Track

# A state is kept as "<unix seconds of its point> <json>": an older one that comes later changes nothing.
_SAVE = """
for i, key in ipairs(KEYS) do
  local old = redis.call('GET', key)
  local at = tonumber(ARGV[2 * i])
  if not old or tonumber(string.match(old, '^[^ ]+')) <= at then
    redis.call('SET', key, ARGV[2 * i] .. ' ' .. ARGV[2 * i + 1], 'PX', ARGV[1])
  end
end
return 1
"""

# KEYS: the end's mark, the ride, its driver, its passenger. ARGV: ttl, "1" with a start, the track, the ride's id.
_TRACK = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[2] == '1' then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[1])
else
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[1], 'NX')
end
redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[1])
redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[1])
return 1
"""

# KEYS: the end's mark, the ride, its progress, then per user (his ride, his path). ARGV: ttl, the ride's id.
_UNTRACK = """
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
for i = 4, #KEYS, 2 do
  if redis.call('GET', KEYS[i]) == ARGV[2] then redis.call('DEL', KEYS[i]) end
  redis.call('DEL', KEYS[i + 1])
end
return 1
"""

# KEYS: paths. ARGV: ttl, then per point the number of its path, its time, the point.
_APPEND = """
for i = 2, #ARGV, 3 do redis.call('ZADD', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]) end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[1]) end
return 1
"""

# KEYS: per ride its progress, its track. A ride that has ended meanwhile keeps no progress.
_PROGRESS = """
for i = 1, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i + 1]) == 1 then
    redis.call('SET', KEYS[i], ARGV[(i + 1) / 2 + 1], 'PX', ARGV[1])
  end
end
return 1
"""

_MARK = "points:marked"

_encode = msgspec.json.encode
_state = msgspec.json.Decoder(UserState)
_track = msgspec.json.Decoder(Track)
_point = msgspec.json.Decoder(Point)
_fold = msgspec.json.Decoder(Fold)


class RedisPoints(Points):
    """Does not own ``client``."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._save = RedisScript(client, _SAVE)
        self._track = RedisScript(client, _TRACK)
        self._untrack = RedisScript(client, _UNTRACK)
        self._append = RedisScript(client, _APPEND)
        self._progress = RedisScript(client, _PROGRESS)

    async def load(self, user_ids: Collection[str]) -> dict[str, UserState]:
        users = list(user_ids)
        found = await self._get([f"point:{user_id}" for user_id in users])
        return {
            user_id: _state.decode(value.partition(b" ")[2])
            for user_id, value in zip(users, found, strict=True)
            if value is not None
        }

    async def save(self, states: Mapping[str, UserState], ttl: float) -> None:
        arguments: list[bytes | str] = []
        for state in states.values():
            arguments += [repr(state.point.timestamp.timestamp()), _encode(state)]
        if states:
            await self._save([f"point:{user_id}" for user_id in states], _ms(ttl), *arguments)

    async def track(self, track: Track, ttl: float) -> bool:
        keys = [f"ride-ended:{track.ride_id}", f"ride:{track.ride_id}"]
        keys += [f"ride-of:{track.driver_id}", f"ride-of:{track.passenger_id}"]
        started = "1" if track.start is not None else "0"
        return bool(await self._track(keys, _ms(ttl), started, _encode(track), track.ride_id))

    async def untrack(self, ride_id: str, user_ids: Collection[str], ttl: float) -> None:
        keys = [f"ride-ended:{ride_id}", f"ride:{ride_id}", f"ride-fold:{ride_id}"]
        for user_id in user_ids:
            keys += [f"ride-of:{user_id}", f"ride-path:{ride_id}:{user_id}"]
        await self._untrack(keys, _ms(ttl), ride_id)

    async def tracks(self, user_ids: Collection[str]) -> dict[str, Track]:
        users = list(user_ids)
        rides = await self._get([f"ride-of:{user_id}" for user_id in users])
        riding = [(user_id, ride.decode()) for user_id, ride in zip(users, rides, strict=True) if ride is not None]
        if not riding:
            return {}
        found = await self._get([f"ride:{ride_id}" for _, ride_id in riding])
        return {
            user_id: _track.decode(value)
            for (user_id, _), value in zip(riding, found, strict=True)
            if value is not None
        }

    async def append(self, points: Mapping[PathKey, Sequence[Point]], ttl: float) -> None:
        arguments: list[bytes | str | int] = []
        for number, new in enumerate(points.values(), start=1):
            for point in new:
                arguments += [number, repr(point.timestamp.timestamp()), _encode(point)]
        if arguments:
            await self._append([f"ride-path:{ride_id}:{user_id}" for ride_id, user_id in points], _ms(ttl), *arguments)

    async def path(self, ride_id: str, user_id: str) -> list[Point]:
        with reaching_redis():
            found = await self._client.execute_command("ZRANGE", f"{PREFIX}ride-path:{ride_id}:{user_id}", 0, -1)
        return [_point.decode(value) for value in found]

    async def progress(self, ride_ids: Collection[str]) -> dict[str, Fold]:
        rides = list(ride_ids)
        found = await self._get([f"ride-fold:{ride_id}" for ride_id in rides])
        return {ride_id: _fold.decode(value) for ride_id, value in zip(rides, found, strict=True) if value is not None}

    async def set_progress(self, folds: Mapping[str, Fold], ttl: float) -> None:
        keys = [key for ride_id in folds for key in (f"ride-fold:{ride_id}", f"ride:{ride_id}")]
        if keys:
            await self._progress(keys, _ms(ttl), *(_encode(fold) for fold in folds.values()))

    async def is_blank(self) -> bool:
        return (await self._get([_MARK]))[0] is None

    async def mark(self) -> None:
        with reaching_redis():
            await self._client.execute_command("SET", PREFIX + _MARK, b"1")

    async def _get(self, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        with reaching_redis():
            found: list[bytes | None] = await self._client.execute_command("MGET", *(PREFIX + key for key in keys))
        return found


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
