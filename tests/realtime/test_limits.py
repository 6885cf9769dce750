"""What a user may say: counted in slices, so that most frames ask nobody, and never more than the bucket holds."""

import pytest

from nebengjek.clock import ManualClock
from nebengjek.errors import RateLimited, Unavailable
from nebengjek.faststate import FastState, MemoryFastState
from nebengjek.realtime import limits
from nebengjek.realtime.limits import Allowance, Limits, Rate

RATE = Rate(per_second=20, burst=40)


def limits_of(state: FastState) -> Limits:
    return Limits(state, frames=RATE, commands=Rate(per_second=0.01, burst=3))


class Counting(MemoryFastState):
    """Counts how often it is asked; ``away``: it does not answer."""

    asked = 0
    away = False

    async def draw(self, key: str, *, rate: float, burst: float, wanted: int = 1) -> tuple[int, float]:
        self.asked += 1
        if self.away:
            raise Unavailable("redis")
        return await super().draw(key, rate=rate, burst=burst, wanted=wanted)


async def say(allowance: Allowance, count: int, kind: str = "location.update") -> int:
    """How many of ``count`` frames pass."""
    passed = 0
    for _ in range(count):
        try:
            if not allowance.spend(kind):
                await allowance.refill(kind)
            passed += 1
        except RateLimited as error:
            assert 0 < error.retry_after < 1.01 / RATE.per_second  # noqa: PT017 - how many pass is what is asked
    return passed


async def test_a_phone_asks_once_for_a_quarter_of_what_may_be_saved_up() -> None:
    state = Counting(ManualClock())
    phone = Allowance(limits_of(state), "ana")
    assert await say(phone, 40) == 40
    assert state.asked == 4
    assert await say(phone, 3) == 0


async def test_two_phones_of_a_user_share_and_those_of_two_users_do_not() -> None:
    clock = ManualClock()
    state = MemoryFastState(clock)
    one, twin, other = (Allowance(limits_of(state), user) for user in ("ana", "ana", "budi"))
    # The first one takes three slices and keeps five of the third, the other one gets what is left.
    assert [await say(one, 25), await say(twin, 25), await say(one, 25)] == [25, 10, 5]
    assert await say(other, 50) == 40
    assert await say(one, 50, "session.ack") == 40
    clock.advance(1)
    assert await say(twin, 50) == 20
    clock.advance(3600)
    assert await say(twin, 90) == 40


async def test_with_the_fast_state_away_a_pod_counts_by_itself_and_asks_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = Counting(ManualClock())
    state.away = True
    pod = limits_of(state)
    phone, twin = Allowance(pod, "ana"), Allowance(pod, "ana")
    assert await say(phone, 30) + await say(twin, 10) == 40
    assert state.asked == 1
    monkeypatch.setattr(pod, "_away_until", 0.0)
    state.away = False
    assert await say(twin, 40) == 40
    assert state.asked > 1


def test_a_slice_is_never_nothing() -> None:
    assert [Rate(per_second=1, burst=burst).slice for burst in (1, 3, 40)] == [1, 1, 10]
    assert limits.SLICES > 1


async def test_what_is_said_over_http_is_counted_with_what_is_said_on_the_socket() -> None:
    pod = limits_of(MemoryFastState(ManualClock()))
    phone = Allowance(pod, "ana")
    await phone.refill("user.beacon")
    for _ in range(2):
        await pod.count("ana", "user.beacon")
    with pytest.raises(RateLimited, match=r"user\.beacon") as caught:
        await pod.count("ana", "user.beacon")
    assert 90 < caught.value.retry_after <= 100
    await pod.count("ana", "user.finder")
    await pod.count("budi", "user.beacon")
