"""Fast, forgettable state: small values with an end, in this process or in Redis.

Used for one-time codes, rate limits, revoked sessions and the answers to a phone's frames. Whoever keeps
something here can live without it: a lost value costs a repetition, never a fact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from nebengjek.clock import Clock
from nebengjek.errors import Unavailable

PREFIX = "nebengjek:"
"""What every key of ours in a shared Redis begins with."""


class FastState(ABC):
    """Values by key; each lives ``ttl`` seconds. Raises Unavailable("redis") where there is a server to miss."""

    @abstractmethod
    async def get(self, key: str) -> bytes | None: ...

    @abstractmethod
    async def put(self, key: str, value: bytes, ttl: float, *, if_absent: bool = False) -> bool:
        """Keep ``value``; with ``if_absent`` only where nothing is, in one step. False: something was."""

    @abstractmethod
    async def take(self, key: str) -> bytes | None:
        """Read and delete in one step: of two takers one gets it."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget a value or a counter, if it is there."""

    @abstractmethod
    async def hit(self, key: str, window: float) -> tuple[int, float]:
        """Count one more. The first hit opens a window of so many seconds; later ones do not extend it.

        Returns the hits within the window, this one included, and the seconds until it closes.
        """

    @abstractmethod
    async def draw(self, key: str, *, rate: float, burst: float, wanted: int = 1) -> tuple[int, float]:
        """Take up to ``wanted`` tokens out of a bucket that holds ``burst`` and gains ``rate`` a second, in one step.

        Returns how many there were, and if none the seconds until there is one. Exact to a millisecond: what is drawn
        one by one should not come more than some hundred times a second.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable("redis")."""

    @abstractmethod
    async def close(self) -> None: ...

    @property
    @abstractmethod
    def where(self) -> str:
        """For people: ``in this process`` or the server's address, without credentials."""


class MemoryFastState(FastState):
    """In this process. What expired is swept whenever the table has doubled, so it stays bounded by what lives."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._sweep_at = 1024

    async def get(self, key: str) -> bytes | None:
        found = self._live(key)
        return found[0] if found else None

    async def put(self, key: str, value: bytes, ttl: float, *, if_absent: bool = False) -> bool:
        if if_absent and self._live(key):
            return False
        self._keep(key, value, self._clock.seconds() + _positive(ttl))
        return True

    async def take(self, key: str) -> bytes | None:
        found = self._live(key)
        self._kept.pop(key, None)
        return found[0] if found else None

    async def delete(self, key: str) -> None:
        self._kept.pop(key, None)

    async def hit(self, key: str, window: float) -> tuple[int, float]:
        now = self._clock.seconds()
        found = self._live(key)
        count, ends = (int(found[0]) + 1, found[1]) if found else (1, now + _positive(window))
        self._keep(key, b"%d" % count, ends)
        return count, ends - now

    async def draw(self, key: str, *, rate: float, burst: float, wanted: int = 1) -> tuple[int, float]:
        # A bucket is the time until it is full again: a full one is not kept.
        now = self._clock.seconds()
        left = found[1] - now if (found := self._live(key)) else 0.0
        taken = min(wanted, int(burst - left * rate + 1e-6))
        if taken < 1:
            return 0, left - (burst - 1) / rate
        self._keep(key, b"", now + left + taken / rate)
        return taken, 0.0

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        self._kept.clear()

    @property
    def where(self) -> str:
        return "in this process"

    def __len__(self) -> int:
        return len(self._kept)

    def _live(self, key: str) -> tuple[bytes, float] | None:
        found = self._kept.get(key)
        return found if found is not None and found[1] > self._clock.seconds() else None

    def _keep(self, key: str, value: bytes, ends: float) -> None:
        self._kept[key] = (value, ends)
        if len(self._kept) >= self._sweep_at:
            now = self._clock.seconds()
            self._kept = {key: entry for key, entry in self._kept.items() if entry[1] > now}
            self._sweep_at = max(1024, 2 * len(self._kept))


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError(f"a time to live of {seconds} s would keep nothing")
    return seconds


# -- Redis -------------------------------------------------------------------------------------------------


class RedisClient(Protocol):
    """What we use of ``redis.asyncio.Redis``: named here, so that the embedded default never imports redis."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...

    def register_script(self, script: str) -> Callable[..., Any]: ...

    async def aclose(self, close_connection_pool: bool | None = None) -> None: ...


def connect_redis(url: str) -> Any:
    """A ``redis.asyncio.Redis`` for ``redis://``, ``rediss://`` or ``unix://``; nothing is sent before its first use.

    A command waits at most 2 s for a connection and 3 s for its answer, and is never repeated by itself: a second
    ``SET NX`` would find the first. Raises ValueError for a URL that is none of those.
    """
    # Lazy: without a REDIS_URL nothing of redis is imported.
    redis = import_module("redis.asyncio")
    once = import_module("redis.asyncio.retry").Retry(import_module("redis.backoff").NoBackoff(), 0)
    maintenance = import_module("redis.maint_notifications").MaintNotificationsConfig
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=64,  # a pipeline each is plenty for one process; who finds none free waits his turn
        timeout=3.0,
        socket_connect_timeout=2.0,
        socket_timeout=3.0,
        health_check_interval=15,
        # A pool that waits for these hands out connections that the server has closed, and a request fails on each.
        maint_notifications_config=maintenance(enabled=False),
        retry=once,
    )
    return redis.Redis.from_pool(pool)


@cache
def _away() -> tuple[type[BaseException], ...]:
    """The errors that mean: there is no server, or it cannot serve now."""
    errors = import_module("redis.exceptions")  # lazy: only a process that holds a client gets here
    return errors.ConnectionError, errors.TimeoutError, errors.ReadOnlyError, errors.ClusterDownError, OSError


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Inside, a Redis that does not answer is ``Unavailable("redis")``."""
    try:
        yield
    except _away() as error:
        full = "all connections to redis are in use, try again" if isinstance(error.__cause__, TimeoutError) else None
        raise Unavailable("redis", full) from error


def redis_address(client: RedisClient) -> str:
    """For people: the server of a client, without credentials."""
    options = getattr(getattr(client, "connection_pool", None), "connection_kwargs", {})
    if "path" in options:
        return f"redis at {options['path']}"
    return f"redis at {options.get('host', '?')}:{options.get('port', 6379)}/{options.get('db', 0)}"


class RedisScript:
    """A Lua script that runs in one step on the server; its keys get our prefix.

    Keys must lie on one server: a cluster that spreads them refuses the script.
    """

    def __init__(self, client: RedisClient, text: str) -> None:
        self._run = client.register_script(text)

    async def __call__(self, keys: Sequence[str], *args: Any) -> Any:
        with reaching_redis():
            return await self._run(keys=[PREFIX + key for key in keys], args=args)


_HIT = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {count, redis.call('PTTL', KEYS[1])}
"""


# KEYS: a bucket, whose life is the time until it is full again. ARGV: milliseconds a token, how many it holds, how many
# are wanted.
_DRAW = """
local left = math.max(0, redis.call('PTTL', KEYS[1]))
local each, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local taken = math.min(tonumber(ARGV[3]), math.floor(burst - left / each + 1e-6))
if taken < 1 then return {0, math.ceil(left - (burst - 1) * each)} end
redis.call('SET', KEYS[1], '', 'PX', string.format('%d', math.max(1, math.floor(left + taken * each + 0.5))))
return {taken, 0}
"""


class RedisFastState(FastState):
    """On a Redis or Valkey (6.2 or newer), for all pods. Does not own ``client`` until ``close``."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._hit = RedisScript(client, _HIT)
        self._draw = RedisScript(client, _DRAW)

    async def get(self, key: str) -> bytes | None:
        found: bytes | None = await self._do("GET", PREFIX + key)
        return found

    async def put(self, key: str, value: bytes, ttl: float, *, if_absent: bool = False) -> bool:
        condition = ("NX",) if if_absent else ()
        return bool(await self._do("SET", PREFIX + key, value, "PX", _milliseconds(ttl), *condition))

    async def take(self, key: str) -> bytes | None:
        found: bytes | None = await self._do("GETDEL", PREFIX + key)
        return found

    async def delete(self, key: str) -> None:
        await self._do("DEL", PREFIX + key)

    async def hit(self, key: str, window: float) -> tuple[int, float]:
        count, left = await self._hit([key], _milliseconds(window))
        return count, left / 1000

    async def draw(self, key: str, *, rate: float, burst: float, wanted: int = 1) -> tuple[int, float]:
        taken, left = await self._draw([key], repr(1000 / rate), repr(burst), wanted)
        return taken, left / 1000

    async def ping(self) -> None:
        await self._do("PING")

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def where(self) -> str:
        return redis_address(self._client)

    async def _do(self, *command: Any) -> Any:
        with reaching_redis():
            return await self._client.execute_command(*command)


def _milliseconds(seconds: float) -> int:
    return max(1, round(_positive(seconds) * 1000))
