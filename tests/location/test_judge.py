"""Which points are believed."""

from hypothesis import given
from hypothesis import strategies as st

from nebengjek.contracts.geo import Point, distance_km
from nebengjek.location.judge import UserState, judge, plausible
from tests.location.stage import at


def verdicts(*points: Point) -> tuple[list[str], UserState]:
    state = UserState(point=points[0])
    return [judge(state, point, 200.0) for point in points[1:]], state


def test_200_kilometres_an_hour_are_believed_and_more_is_not() -> None:
    assert verdicts(at(0), at(18, 999))[0] == ["fresh"]
    assert verdicts(at(0), at(18, 1_001))[0] == ["teleport"]


def test_the_same_second_is_taken_as_a_second() -> None:
    assert verdicts(at(0), at(0, 50))[0] == ["fresh"]
    assert verdicts(at(0), at(0.5, 60))[0] == ["teleport"]


def test_a_point_said_twice_is_believed_twice() -> None:
    result, state = verdicts(at(0), at(5, 20), at(5, 20), at(0))
    assert result == ["fresh", "fresh", "late"]
    assert (state.point, state.teleports) == (at(5, 20), 0)


def test_a_refused_point_said_three_times_is_no_agreement() -> None:
    result, state = verdicts(at(0), at(5, 9_000), at(5, 9_000), at(5, 9_000), at(5, 9_000))
    assert result == ["teleport"] * 4
    assert (state.point, state.teleports) == (at(0), 1)


def test_points_that_were_true_before_a_jump_stay_true_after_it() -> None:
    result, state = verdicts(at(0), at(10, 90), at(11, 9_000), at(12, 9_000), at(13, 9_000), at(5, 40), at(10, 90))
    assert result == ["fresh", "teleport", "teleport", "fresh", "late", "late"]
    assert state.point == at(13, 9_000)
    assert state.teleports == 3


def test_late_points_from_nowhere_never_pull_a_phone_back_in_time() -> None:
    result, state = verdicts(at(100), at(10, 90_000), at(11, 90_000), at(12, 90_000), at(13, 90_000))
    assert result == ["teleport"] * 4
    assert state.point == at(100)


def test_what_was_refused_is_not_remembered_without_end() -> None:
    points = [at(0), *(at(n, 15_000 * (-1) ** n) for n in range(1, 200))]
    result, state = verdicts(*points)
    assert set(result) == {"teleport"}
    assert len(state.refused) <= 8


places = st.builds(at, st.floats(0, 600), st.floats(-40_000, 40_000), st.floats(-40_000, 40_000))


@given(places, places)
def test_the_short_cut_says_what_the_sphere_says(a: Point, b: Point) -> None:
    seconds = max(1.0, abs((a.timestamp - b.timestamp).total_seconds()))
    assert plausible(a, b, 200.0) == (distance_km(a, b) <= 200.0 * seconds / 3600)
    assert plausible(a, b, 200.0) == plausible(b, a, 200.0)


@given(st.lists(places, min_size=1, max_size=30))
def test_the_latest_point_never_goes_back_in_time(points: list[Point]) -> None:
    state = UserState(point=points[0])
    for point in points:
        before = state.point
        judge(state, point, 200.0)
        assert state.point.timestamp >= before.timestamp
