"""The location module: what phones say is judged and confirmed, rides are followed and measured."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from nebengjek.contracts.geo import Point, geohash
from nebengjek.contracts.location import FrameRef
from tests.location.stage import DRIVER, PASSENGER, RIDE, at, stage
from tests.servers import valkey_server


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue("valkey")


def drive(first: int, last: int, step: int = 10) -> list[Point]:
    """North at 10 m/s, a point every ten seconds, as seconds of the beginning to the end."""
    return [at(second, second * 10) for second in range(first, last + 1, step)]


# -- points


async def test_a_point_is_confirmed_with_its_geohash_and_the_frame_it_came_in(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.say("u", at(0))
        (stored,) = world.stored("u")
        assert stored.geohash == geohash(at(0))
        assert stored.frame == FrameRef(connection_id="c", id="1")
        assert (stored.ride_id, stored.other_id, stored.eta_minutes) == (None, None, None)
        assert await world.latest("u", "stranger") == {"u": at(0)}


async def test_the_latest_point_lives_its_time_from_the_last_sign_of_its_own_user(
    tmp_path: Path, url: str | None
) -> None:
    async with stage(tmp_path, url, ttl=1800.0) as world:
        await world.say("a", at(0))
        await world.say("b", at(0))
        await world.where.advance(1000)
        await world.say("b", at(1000, 10))
        await world.where.advance(900)
        assert set(await world.latest("a", "b")) == {"b"}


async def test_a_point_from_the_future_is_refused_beyond_the_skew(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.say("u", at(60), at(61), now=at(0))
        assert world.refused("u") == ["future"]
        assert await world.latest("u") == {"u": at(60)}
        assert await world.flags() == {}


async def test_a_teleport_is_refused_counted_and_after_three_flagged(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        # Never two that agree: a mad phone, not a wrong anchor.
        await world.say("u", at(0), at(1, 5_000), at(2, -5_000))
        assert await world.flags() == {}
        await world.say("u", at(3, 5_000, 5_000), at(4, 20))
        assert world.refused("u") == ["teleport"] * 3
        assert await world.flags() == {"u": 3}
        assert await world.latest("u") == {"u": at(4, 20)}


async def test_three_in_a_row_that_agree_become_the_new_anchor(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.say("u", at(0), at(1, 5_000), at(2, 5_010))
        assert await world.latest("u") == {"u": at(0)}
        await world.say("u", at(3, 5_020), at(4, 5_030), at(5, 0))
        assert world.refused("u") == ["teleport"] * 3
        assert await world.latest("u") == {"u": at(4, 5_030)}


async def test_an_accepted_point_in_between_begins_the_count_of_three_anew(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.say("u", at(0), at(1, 5_000), at(2, 5_000), at(3, 0), at(4, 5_000), at(5, 5_000))
        assert await world.latest("u") == {"u": at(3, 0)}


async def test_a_late_point_is_confirmed_and_does_not_move_the_latest(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.say("u", at(20, 200), at(10, 100))
        assert len(world.stored("u")) == 2
        assert await world.latest("u") == {"u": at(20, 200)}


async def test_a_late_point_from_nowhere_is_refused(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.say("u", at(20, 200), at(10, 9_000))
        assert world.refused("u") == ["teleport"]


async def test_what_is_delivered_twice_is_answered_twice_and_changes_nothing(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        said = await world.say(
            "u", at(0), at(10, 50), at(11, 9_000), at(20, 90), at(30, 9_000), at(31, 9_010), at(32, 9_020)
        )
        before = await world.latest("u")
        stored, refused = len(world.stored("u")), len(world.refused("u"))
        for event in said:
            await world.bus.publish(event)
        await world.settled()
        assert len(world.stored("u")) == 2 * stored
        assert len(world.refused("u")) == 2 * refused == 6
        assert await world.latest("u") == before
        assert await world.flags() == {"u": 3}


# -- who sees whom


async def test_during_the_pick_up_each_knows_how_far_the_other_is(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.pickup())
        await world.say(PASSENGER, at(0, 0))
        await world.say(DRIVER, at(0, 3_000))
        driver, passenger = world.stored(DRIVER)[0], world.stored(PASSENGER)[0]
        assert (driver.ride_id, driver.other_id, driver.eta_minutes) == (RIDE, PASSENGER, 13)
        # The passenger spoke first, when nobody knew where the driver was: it counts to where he is picked up.
        assert (passenger.ride_id, passenger.other_id, passenger.eta_minutes) == (RIDE, DRIVER, 1)
        await world.say(PASSENGER, at(1, 0))
        assert world.stored(PASSENGER)[1].eta_minutes == 13


async def test_on_the_way_both_know_how_far_the_target_is(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.say(DRIVER, at(1, 4_000))
        assert world.stored(DRIVER)[0].eta_minutes == 26  # 6 km x 1.4 at 20 km/h, rounded up


async def test_a_late_point_does_not_move_the_picture_that_the_other_sees(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.pickup())
        await world.say(DRIVER, at(20, 200), at(10, 100))
        assert [event.ride_id for event in world.stored(DRIVER)] == [RIDE, None]


@pytest.mark.parametrize("how", ["arrived", "cancelled"])
async def test_after_the_end_nobody_is_followed(tmp_path: Path, url: str | None, how: str) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.tell(getattr(world, how)())
        await world.say(DRIVER, at(1))
        assert world.stored(DRIVER)[0].ride_id is None


async def test_events_that_overtake_each_other_reopen_nothing(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.cancelled(), world.pickup(), world.started())
        await world.say(DRIVER, at(1))
        await world.lose_the_fast_store()
        await world.tell(world.pickup())
        await world.sweep()
        await world.say(DRIVER, at(2))
        assert [event.ride_id for event in world.stored(DRIVER)] == [None, None]


async def test_a_start_that_overtook_its_pick_up_counts(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.started(), world.pickup(), world.started())
        await world.say(DRIVER, *drive(10, 150))
        assert [one.sequence for one in world.aggregates()] == [1]


async def test_the_end_of_an_old_ride_leaves_the_new_one_alone(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.pickup("old"), world.pickup("new"), world.arrived("old"))
        await world.say(DRIVER, at(1))
        assert world.stored(DRIVER)[0].ride_id == "new"


# -- how far


async def test_each_kilometre_is_said_once_with_its_number_and_the_total(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        for point in drive(10, 250):
            await world.say(DRIVER, point)
        said = world.aggregates()
        assert [one.sequence for one in said] == [1, 2]
        assert sum(one.distance_km for one in said) == pytest.approx(said[-1].total_km)
        assert said[-1].total_km == pytest.approx(2.0, abs=0.11)
        distance = await world.close()
        assert distance.total_km == pytest.approx(2.5, abs=1e-5)
        assert (distance.sequence, distance.review) == (2, False)


async def test_points_before_the_start_do_not_count(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.pickup())
        await world.say(DRIVER, *drive(10, 100))
        await world.tell(world.started(100))
        await world.say(DRIVER, *drive(110, 150))
        assert (await world.close(at(100, 1000))).total_km == pytest.approx(0.5, abs=1e-6)


async def test_points_that_came_before_the_news_of_the_start_do_count(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.pickup())
        await world.say(DRIVER, *drive(10, 100))
        await world.tell(world.started(0))
        await world.say(DRIVER, at(110, 1_100))
        assert [one.total_km for one in world.aggregates()] == [pytest.approx(1.1, abs=1e-6)]


async def test_late_points_make_no_progress_and_are_on_the_bill(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        # Out and back: seen without its middle it is no way at all.
        await world.say(DRIVER, at(40, 20))
        await world.say(DRIVER, at(20, 600))
        assert world.aggregates() == []
        assert (await world.close()).total_km == pytest.approx(0.6 + 0.58, abs=1e-6)


async def test_where_the_driver_is_silent_the_passenger_makes_progress(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.say(PASSENGER, *drive(10, 60))
        assert world.aggregates() == []
        await world.say(PASSENGER, *drive(70, 120))
        assert [one.sequence for one in world.aggregates()] == [1]
        assert (await world.close()).total_km == pytest.approx(1.2, abs=1e-6)


async def test_phones_that_disagree_put_the_ride_on_review(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.say(DRIVER, *drive(10, 100))
        await world.say(PASSENGER, *drive(10, 50))
        assert (await world.close()).review


async def test_closed_again_the_answer_is_the_same_and_nothing_more_is_said(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.say(DRIVER, *drive(10, 90))
        first = await world.close()
        await world.say(DRIVER, *drive(100, 350))
        assert await world.close() == first
        await world.tell(world.arrived())
        await world.lose_the_fast_store()
        assert await world.close() == first
        assert world.aggregates() == []


async def test_many_who_ask_at_once_get_one_answer(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.say(DRIVER, *drive(10, 90))
        answers = await asyncio.gather(*(world.close() for _ in range(5)))
        assert answers == [answers[0]] * 5


async def test_what_was_published_before_the_question_is_in_the_answer(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        await world.until(at(600))
        for point in drive(1, 600, step=1):
            await world.bus.publish_soon(world.update(DRIVER, point))
        await world.bus.flush()
        assert (await world.close()).total_km == pytest.approx(6.0, abs=0.011)


async def test_a_ride_nobody_knew_of_has_no_way(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        assert (await world.close()).total_km == 0.0


async def test_the_question_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with stage(tmp_path, None, arrival_wait=0.05) as world:
        await world.under_way()
        await world.say(DRIVER, at(10, 100))
        stuck, going_on = asyncio.Event(), asyncio.Event()
        load = world.points.load

        async def slow(user_ids: object) -> object:
            stuck.set()
            await going_on.wait()
            return await load(user_ids)  # type: ignore[arg-type]

        world.points.load = slow  # type: ignore[method-assign,assignment]
        await world.bus.publish(world.update(DRIVER, at(20, 200)))
        await stuck.wait()
        assert (await world.close()).total_km == pytest.approx(0.1, abs=1e-6)
        going_on.set()


# -- when the fast store is lost


async def test_a_ride_goes_on_from_its_checkpoint(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.under_way()
        # A way with a turn, so that a straight line over the gap would be too short.
        for point in (*drive(10, 100), *(at(100 + s, 1_000, s * 10) for s in range(10, 111, 10))):
            await world.say(DRIVER, point)
        assert [one.sequence for one in world.aggregates()] == [1, 2]
        await world.lose_the_fast_store()
        await world.sweep()
        await world.say(DRIVER, *(at(210 + s, 1_000 - s * 10, 1_100) for s in range(10, 101, 10)))
        said = world.aggregates()
        assert [one.sequence for one in said] == [1, 2, 3]
        assert sum(one.distance_km for one in said) == pytest.approx(said[-1].total_km)
        distance = await world.close()
        # Only the corner between the checkpoint and the first point after the loss is cut.
        assert 3.0 < distance.total_km <= 3.1
        assert distance.sequence == 3


async def test_after_a_loss_the_open_rides_are_followed_again(tmp_path: Path, url: str | None) -> None:
    async with stage(tmp_path, url) as world:
        await world.tell(world.pickup())
        await world.lose_the_fast_store()
        await world.sweep()
        await world.say(DRIVER, at(1))
        assert world.stored(DRIVER)[0].ride_id == RIDE


# -- several pods


async def test_two_pods_that_share_the_points_say_each_kilometre_once(tmp_path: Path, valkey: str) -> None:
    async with stage(tmp_path, valkey, pods=2) as world:
        await world.under_way()
        await world.until(at(500))
        for point in drive(1, 500, step=1):
            await world.bus.publish_soon(world.update(DRIVER, point))
            await world.bus.publish_soon(world.update(PASSENGER, point))
        await world.settled()
        distance = await world.close()
        said = world.aggregates()
        assert distance.total_km == pytest.approx(5.0, abs=0.011)
        assert [one.sequence for one in said] == list(range(1, len(said) + 1))
        assert distance.sequence == len(said)
        assert all(b.total_km - a.total_km == pytest.approx(b.distance_km) for a, b in itertools.pairwise(said))
