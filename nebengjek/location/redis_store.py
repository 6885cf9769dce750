"""The fast half of location's memory on a Redis or Valkey, for all pods; see ``store.Points`` for the promises."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from nebengjek.contracts.geo import Point
from nebengjek.faststate import PREFIX, RedisClient, RedisScript, reaching_redis
from nebengjek.location.odometer import Fold
from nebengjek.location.store import Points, Track, UserState

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

_APPEND = """
for i = 2, #ARGV, 2 do redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""

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

    async def append(self, ride_id: str, user_id: str, points: Sequence[Point], ttl: float) -> None:
        arguments: list[bytes | str] = []
        for point in points:
            arguments += [repr(point.timestamp.timestamp()), _encode(point)]
        await self._append([f"ride-path:{ride_id}:{user_id}"], _ms(ttl), *arguments)

    async def path(self, ride_id: str, user_id: str) -> list[Point]:
        with reaching_redis():
            found = await self._client.execute_command("ZRANGE", f"{PREFIX}ride-path:{ride_id}:{user_id}", 0, -1)
        return [_point.decode(value) for value in found]

    async def progress(self, ride_id: str) -> Fold | None:
        (found,) = await self._get([f"ride-fold:{ride_id}"])
        return _fold.decode(found) if found is not None else None

    async def set_progress(self, ride_id: str, fold: Fold, ttl: float) -> None:
        with reaching_redis():
            key = f"{PREFIX}ride-fold:{ride_id}"
            await self._client.execute_command("SET", key, _encode(fold), "PX", _ms(ttl))

    async def _get(self, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        with reaching_redis():
            found: list[bytes | None] = await self._client.execute_command("MGET", *(PREFIX + key for key in keys))
        return found


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
