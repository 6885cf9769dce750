"""The pool on a Redis or Valkey, for all pods: each operation is one step there."""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from nebengjek.contracts.geo import Location, Place, distance_km
from nebengjek.contracts.users import VehicleType
from nebengjek.faststate import RedisClient, RedisScript
from nebengjek.match.dispatch import Candidate
from nebengjek.match.pool import Pool

# Three keys: where (a geo set), when last seen (a sorted set), and the profile "vehicle latitude longitude".
# A driver is in the pool when he has a sign of life; the geo set alone finds nobody.
_DRIVERS = ("pool:places", "pool:seen", "pool:profiles")
_SEARCHES = ("search:places", "search:profiles")
_MARK = "pool:mark"

_JOIN = """
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[5])
redis.call('GEOADD', KEYS[1], ARGV[2], ARGV[3], ARGV[1])
return 1
"""

_LEAVE = """
redis.call('ZREM', KEYS[1], unpack(ARGV))
redis.call('ZREM', KEYS[2], unpack(ARGV))
redis.call('HDEL', KEYS[3], unpack(ARGV))
return 1
"""

# ARGV: per point user, longitude and latitude for the geo set, seen, "latitude longitude".
_MOVE = """
local moved = {}
for i = 1, #ARGV, 5 do
  local seen = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if seen and tonumber(ARGV[i + 3]) > tonumber(seen) then
    local profile = redis.call('HGET', KEYS[3], ARGV[i])
    if profile then
      redis.call('ZADD', KEYS[2], ARGV[i + 3], ARGV[i])
      redis.call('HSET', KEYS[3], ARGV[i], string.match(profile, '^[^ ]+') .. ' ' .. ARGV[i + 4])
      redis.call('GEOADD', KEYS[1], ARGV[i + 1], ARGV[i + 2], ARGV[i])
      moved[#moved + 1] = ARGV[i]
    end
  end
end
return moved
"""

# ARGV: longitude, latitude, radius in km, wanted, vehicle or "", seen after or "", then who is excluded. Asks the
# geo set for twice as many as are wanted, and for more while the filters leave too few.
_NEAREST = """
local excluded = {}
for i = 7, #ARGV do excluded[ARGV[i]] = true end
local wanted, after = tonumber(ARGV[4]), tonumber(ARGV[6])
local count, asked, found = wanted * 2, 0, {}
while true do
  local near = redis.call('GEOSEARCH', KEYS[1], 'FROMLONLAT', ARGV[1], ARGV[2],
    'BYRADIUS', ARGV[3], 'km', 'ASC', 'COUNT', count)
  for i = asked + 1, #near do
    local id = near[i]
    local profile = not excluded[id] and redis.call('HGET', KEYS[3], id)
    if profile and (ARGV[5] == '' or string.match(profile, '^[^ ]+') == ARGV[5]) then
      local seen = redis.call('ZSCORE', KEYS[2], id)
      if seen and (not after or tonumber(seen) > after) then
        found[#found + 1] = id
        found[#found + 1] = profile
      end
    end
  end
  if #found / 2 >= wanted or #near < count then return found end
  asked, count = #near, count * 4
end
"""

_FORGET = """
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1])
for _, id in ipairs(gone) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end
return gone
"""

_DRIVERS_IN = "return redis.call('ZRANGE', KEYS[2], 0, -1)"

_OPEN = """
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
redis.call('GEOADD', KEYS[1], ARGV[2], ARGV[3], ARGV[1])
return 1
"""

_CLOSE = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
"""

_SEARCHES_NEAR = """
local found = {}
local near = redis.call('GEOSEARCH', KEYS[1], 'FROMLONLAT', ARGV[1], ARGV[2], 'BYRADIUS', ARGV[3], 'km')
for _, id in ipairs(near) do
  local profile = redis.call('HGET', KEYS[2], id)
  if profile then
    found[#found + 1] = id
    found[#found + 1] = profile
  end
end
return found
"""

_IS_BLANK = "return 1 - redis.call('EXISTS', KEYS[1])"
_MARKED = "redis.call('SET', KEYS[1], '1') return 1"

_MOST_NORTHERN = 85.05112878
"""Redis' geo set ends here; beyond, places lie on its edge and are told apart by their exact distance only."""
_SPARE = 4
"""Redis rounds places to half a metre: of so many drivers at almost the same distance the right ones are chosen."""


class RedisPool(Pool):
    """On a Redis or Valkey, for all pods; each operation is one step there. Does not own ``client``."""

    def __init__(self, client: RedisClient) -> None:
        self._join = RedisScript(client, _JOIN)
        self._leave = RedisScript(client, _LEAVE)
        self._move = RedisScript(client, _MOVE)
        self._nearest = RedisScript(client, _NEAREST)
        self._forget = RedisScript(client, _FORGET)
        self._drivers = RedisScript(client, _DRIVERS_IN)
        self._open = RedisScript(client, _OPEN)
        self._close = RedisScript(client, _CLOSE)
        self._near = RedisScript(client, _SEARCHES_NEAR)
        self._is_blank = RedisScript(client, _IS_BLANK)
        self._mark = RedisScript(client, _MARKED)

    async def join(self, driver_id: str, location: Location, vehicle_type: VehicleType, seen: datetime) -> None:
        profile = f"{vehicle_type} {_exact(location)}"
        await self._join(_DRIVERS, driver_id, *_indexed(location), _micros(seen), profile)

    async def leave(self, driver_id: str) -> None:
        await self._leave(_DRIVERS, driver_id)

    async def move(self, points: Sequence[tuple[str, Place, datetime]]) -> list[str]:
        if not points:
            return []
        arguments: list[Any] = []
        for user_id, location, seen in points:
            arguments += (user_id, *_indexed(location), _micros(seen), _exact(location))
        return list(dict.fromkeys(_text(await self._move(_DRIVERS, *arguments))))

    async def nearest(
        self,
        location: Location,
        radius_km: float,
        limit: int,
        *,
        vehicle_type: VehicleType | None = None,
        seen_after: datetime | None = None,
        exclude: Collection[str] = (),
    ) -> list[Candidate]:
        found = await self._nearest(
            _DRIVERS,
            *_indexed(location),
            _widened(radius_km),
            limit + _SPARE,
            vehicle_type or "",
            _micros(seen_after) if seen_after is not None else "",
            *exclude,
        )
        candidates = []
        for driver_id, profile in _pairs(found):
            vehicle, latitude, longitude = profile.split(" ")
            place = Location(latitude=float(latitude), longitude=float(longitude))
            km = distance_km(location, place)
            if km <= radius_km:
                candidates.append(
                    Candidate(driver_id=driver_id, location=place, distance_km=km, vehicle_type=_vehicle(vehicle))
                )
        return sorted(candidates, key=lambda one: (one.distance_km, one.driver_id))[:limit]

    async def drivers(self) -> list[str]:
        return _text(await self._drivers(_DRIVERS))

    async def size(self) -> int:
        return len(await self.drivers())

    async def forget(self, before: datetime) -> list[str]:
        return _text(await self._forget(_DRIVERS, _micros(before)))

    async def open_search(self, search_id: str, location: Location) -> None:
        await self._open(_SEARCHES, search_id, *_indexed(location), _exact(location))

    async def close_search(self, search_id: str) -> None:
        await self._close(_SEARCHES, search_id)

    async def searches_near(self, location: Place, radius_km: float) -> list[str]:
        near = []
        for search_id, profile in _pairs(await self._near(_SEARCHES, *_indexed(location), _widened(radius_km))):
            latitude, longitude = profile.split(" ")
            km = distance_km(location, Location(latitude=float(latitude), longitude=float(longitude)))
            if km <= radius_km:
                near.append((km, search_id))
        return [search_id for _, search_id in sorted(near)]

    async def is_blank(self) -> bool:
        return bool(await self._is_blank([_MARK]))

    async def mark(self) -> None:
        await self._mark([_MARK])


def _indexed(location: Place) -> tuple[float, float]:
    """Longitude and latitude as the geo set takes them."""
    return location.longitude, max(-_MOST_NORTHERN, min(_MOST_NORTHERN, location.latitude))


def _exact(location: Place) -> str:
    return f"{location.latitude!r} {location.longitude!r}"


def _widened(radius_km: float) -> float:
    # Redis' earth is 0.03 % larger than ours and its places are rounded: nobody may be missed, exactness comes after.
    return radius_km * 1.001 + 0.002


def _micros(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def _text(values: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in values]


def _pairs(flat: Sequence[bytes]) -> list[tuple[str, str]]:
    return list(zip(_text(flat[::2]), _text(flat[1::2]), strict=True))


def _vehicle(name: str) -> VehicleType:
    vehicle: VehicleType = msgspec.convert(name, VehicleType)
    return vehicle
