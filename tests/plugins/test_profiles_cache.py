"""The cache of profiles: kept, forgotten, and never put back by who had read before the change."""

from nebengjek.clock import ManualClock
from nebengjek.faststate import MemoryFastState
from nebengjek_plugins.profiles.cache import Cache


async def test_what_was_kept_is_read_until_it_is_forgotten() -> None:
    clock = ManualClock()
    cache = Cache(MemoryFastState(clock), clock, ttl=60)
    assert await cache.get("ani", str) is None
    await cache.keep("ani", "first", began=clock.seconds())
    assert await cache.get("ani", str) == "first"
    await cache.forget("ani")
    assert await cache.get("ani", str) is None
    clock.advance(11)
    await cache.keep("ani", "second", began=clock.seconds())
    assert await cache.get("ani", str) == "second"
    clock.advance(61)
    assert await cache.get("ani", str) is None


async def test_who_read_before_the_change_does_not_put_the_old_one_back() -> None:
    clock = ManualClock()
    cache = Cache(MemoryFastState(clock), clock, ttl=60)
    began = clock.seconds()
    await cache.forget("ani")
    await cache.keep("ani", "old", began=began)
    assert await cache.get("ani", str) is None
    clock.advance(11)
    await cache.keep("ani", "old", began=began)
    assert await cache.get("ani", str) is None
