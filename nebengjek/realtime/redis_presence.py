"""Presence on a Redis or Valkey: each pod holds its connections under one lease, which ends 8 s after its last beat.

A pod that dies without a word is forgotten with its lease; who comes first takes its connections out. A pod that was
only held up, or whose server has lost its memory, finds its lease gone at the next beat and says all it holds again.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.errors import Unavailable
from nebengjek.faststate import PREFIX, RedisClient, RedisScript, reaching_redis
from nebengjek.realtime.presence import Presence

LEASE_SECONDS = 8.0
AT_ONCE = 500
ENDED_KEPT = 900.0
"""Seconds for which a pod remembers who left it, to say it again to a server that has lost its memory."""

# "presence:<user>" is a set of "<holder> <connection>", "presence-pod:<holder>" one of "<user> <connection>",
# "presence-alive:<holder>" the lease, "presence-pods" the holders, "presence-gone" who has none, and since when.
# A holder is "<pod id>.<life>": a pod that starts again under its id does not inherit what it held before.

# KEYS: the holder's set, gone, a user each. ARGV: the holder, then user and connection of each.
_ATTACH = """
for i = 3, #KEYS do
  local user, connection = ARGV[2 * i - 4], ARGV[2 * i - 3]
  redis.call('SADD', KEYS[i], ARGV[1] .. ' ' .. connection)
  redis.call('SADD', KEYS[1], user .. ' ' .. connection)
  redis.call('ZREM', KEYS[2], user)
end
return 1
"""

# KEYS: the holder's set, gone, a user each. ARGV: the holder, now, then user and connection of each.
_DETACH = """
for i = 3, #KEYS do
  local user, connection = ARGV[2 * i - 3], ARGV[2 * i - 2]
  redis.call('SREM', KEYS[1], user .. ' ' .. connection)
  if redis.call('SREM', KEYS[i], ARGV[1] .. ' ' .. connection) == 1 and redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('ZADD', KEYS[2], ARGV[2], user)
  end
end
return 1
"""

# KEYS: the lease, the holders, then as _DETACH. What is held by somebody who is there after all stays.
_FORGET = f"""
if redis.call('EXISTS', table.remove(KEYS, 1)) == 1 then return 0 end
local holders = table.remove(KEYS, 1)
{_DETACH.strip().removesuffix("return 1")}
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', holders, ARGV[1]) end
return 1
"""

# KEYS: the lease, the holders. ARGV: the holder, the lease's milliseconds, what the name of a lease begins with.
# Answers whether the lease had gone on, then the other holders whose lease has ended.
_BEAT = """
local kept = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
local dead = {}
for _, holder in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if holder ~= ARGV[1] and redis.call('EXISTS', ARGV[3] .. holder) == 0 then table.insert(dead, holder) end
end
return {kept, dead}
"""

# KEYS: users. ARGV: what the name of a lease begins with. Answers for each user the holders that are there.
_WHERE = """
local alive, found = {}, {}
for i, key in ipairs(KEYS) do
  local holders, seen = {}, {}
  for _, member in ipairs(redis.call('SMEMBERS', key)) do
    local holder = string.match(member, '^[^ ]+')
    if alive[holder] == nil then alive[holder] = redis.call('EXISTS', ARGV[1] .. holder) == 1 end
    if alive[holder] and not seen[holder] then
      seen[holder] = true
      table.insert(holders, holder)
    end
  end
  found[i] = holders
end
return found
"""

# KEYS: gone. ARGV: until when. Of two who ask, one gets it.
_LAPSED = """
local users = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1000)
if #users > 0 then redis.call('ZREM', KEYS[1], unpack(users)) end
return users
"""

# KEYS: gone, a user each. ARGV: user and since when of each.
_GONE = """
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('ZADD', KEYS[1], 'NX', ARGV[2 * i - 2], ARGV[2 * i - 3]) end
end
return 1
"""


class RedisPresence(Presence):
    """Does not own ``client``. What it cannot tell the server now, the next beat tells.

    ``kind``: what the keys begin with; of another kind it knows who holds something else than phones.
    """

    def __init__(self, client: RedisClient, clock: Clock, *, pod_id: str, kind: str = "presence") -> None:
        self._client = client
        self._kind = kind
        self._lease = f"{kind}-alive:"
        self._gone_key = f"{kind}-gone"
        self._clock = clock
        self._pod_id = pod_id
        self._holder = f"{pod_id}.{uuid7()}"
        self._own: dict[str, str] = {}
        """User by connection: what this pod holds, whatever the server knows."""
        self._ended: dict[str, float] = {}
        self._untold: dict[str, str] = {}
        """Connections that ended while the server was away."""
        self._told = True
        self._turn = asyncio.Lock()
        self._next: tuple[set[str], asyncio.Task[dict[str, list[str]]]] | None = None
        """The look at the server that has not begun: whom it is for."""
        self._attach = RedisScript(client, _ATTACH)
        self._detach = RedisScript(client, _DETACH)
        self._forget = RedisScript(client, _FORGET)
        self._beat = RedisScript(client, _BEAT)
        self._where = RedisScript(client, _WHERE)
        self._lapsed = RedisScript(client, _LAPSED)
        self._gone = RedisScript(client, _GONE)

    async def attach(self, user_id: str, connection_id: str) -> None:
        self._own[connection_id] = user_id
        self._ended.pop(user_id, None)
        try:
            await self._say_attached([(user_id, connection_id)])
        except Unavailable:
            self._told = False

    async def detach(self, user_id: str, connection_id: str) -> None:
        if self._own.pop(connection_id, None) is None:
            return
        self._ended[user_id] = self._clock.seconds()
        try:
            await self._say_detached([(user_id, connection_id)])
        except Unavailable:
            self._untold[connection_id] = user_id

    async def beat(self) -> None:
        try:
            keys = [f"{self._lease}{self._holder}", f"{self._kind}-pods"]
            lease = round(LEASE_SECONDS * 1000)
            kept, dead = await self._beat(keys, self._holder, lease, PREFIX + self._lease)
            if not kept or not self._told:
                await self._say_all()
            if self._untold:
                untold = dict(self._untold)
                for some in _chunks([(user_id, connection_id) for connection_id, user_id in untold.items()]):
                    await self._say_detached(some)
                for connection_id in untold:
                    del self._untold[connection_id]
            for holder in dead:
                await self._forget_pod(holder.decode())
        except Unavailable:
            # Until it is back nobody is forgotten: there is nobody who could say so.
            return

    async def elsewhere(self, user_ids: Collection[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for user_id, holders in (await self._holders(user_ids)).items():
            pods = {holder.partition(".")[0] for holder in holders} - {self._pod_id}
            if pods:
                found[user_id] = pods
        return found

    async def connected(self, user_ids: Collection[str]) -> set[str]:
        own = set(self._own.values()).intersection(user_ids) if user_ids else set()
        others = [user_id for user_id in user_ids if user_id not in own]
        return own | {user_id for user_id, holders in (await self._holders(others)).items() if holders}

    async def lapsed(self, grace: float) -> list[str]:
        found = await self._lapsed([self._gone_key], repr(self._clock.seconds() - grace))
        return [user_id.decode() for user_id in found]

    # -- what the server is told

    async def _say_attached(self, connections: Sequence[tuple[str, str]]) -> None:
        keys, arguments = self._named(self._holder, connections)
        await self._attach(keys, self._holder, *arguments)

    async def _say_detached(self, connections: Sequence[tuple[str, str]]) -> None:
        keys, arguments = self._named(self._holder, connections)
        await self._detach(keys, self._holder, repr(self._clock.seconds()), *arguments)

    async def _say_all(self) -> None:
        self._told = True
        try:
            for some in _chunks([(user_id, connection_id) for connection_id, user_id in list(self._own.items())]):
                await self._say_attached(some)
                # Who hung up meanwhile may have been said to have gone before he was said to be here.
                if left := [one for one in some if one[1] not in self._own]:
                    await self._say_detached(left)
            oldest = self._clock.seconds() - ENDED_KEPT
            self._ended = {user_id: since for user_id, since in self._ended.items() if since > oldest}
            for ended in _chunks(list(self._ended.items())):
                keys = [self._gone_key, *(f"{self._kind}:{user_id}" for user_id, _ in ended)]
                await self._gone(keys, *(part for user_id, since in ended for part in (user_id, repr(since))))
        except Unavailable:
            self._told = False
            raise

    async def _forget_pod(self, holder: str) -> None:
        while True:
            with reaching_redis():
                command = ("SRANDMEMBER", f"{PREFIX}{self._kind}-pod:{holder}", AT_ONCE)
                members: list[bytes] = await self._client.execute_command(*command)
            connections = [(user, connection) for user, _, connection in (m.decode().partition(" ") for m in members)]
            keys, arguments = self._named(holder, connections)
            keys = [f"{self._lease}{holder}", f"{self._kind}-pods", *keys]
            forgotten = await self._forget(keys, holder, repr(self._clock.seconds()), *arguments)
            if not forgotten or not members:
                return

    async def _holders(self, user_ids: Collection[str]) -> dict[str, list[str]]:
        """Who asks while the server is being asked joins the next look: many at once make it larger, not more of it."""
        if not user_ids:
            return {}
        if self._next is None:
            wanted: set[str] = set()
            task = asyncio.create_task(self._look(wanted), name=f"{self._kind} look")
            # Whoever waited may have been cancelled: then nobody hears that it failed, and nobody needs to.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._next = wanted, task
        wanted, task = self._next
        wanted.update(user_ids)
        found = await asyncio.shield(task)
        return {user_id: found[user_id] for user_id in user_ids}

    async def _look(self, wanted: set[str]) -> dict[str, list[str]]:
        async with self._turn:
            self._next = None
            found: dict[str, list[str]] = {}
            for users in _chunks(wanted):
                answer: list[list[bytes]] = await self._where(
                    [f"{self._kind}:{user_id}" for user_id in users], PREFIX + self._lease
                )
                for user_id, holders in zip(users, answer, strict=True):
                    found[user_id] = [holder.decode() for holder in holders]
            return found

    def _named(self, holder: str, connections: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        keys = [
            f"{self._kind}-pod:{holder}",
            self._gone_key,
            *(f"{self._kind}:{user_id}" for user_id, _ in connections),
        ]
        return keys, [part for connection in connections for part in connection]


def _chunks(items: Iterable[Any]) -> Iterable[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, AT_ONCE)):
        yield some
