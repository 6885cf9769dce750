"""Real trips out of a file: what is taken, what is left out and counted, what is refused."""

from pathlib import Path

import pytest

from nebengjek.errors import Misconfigured
from nebengjek.simulate.trips import LONGEST_GAP_SECONDS, TripFile, departures, read_trips

HEADER = "source,trip_id,pickup_time,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,note"
GOOD = "x,one,2013-11-18T16:00:00,40.752201,-73.989288,40.760628,-74.002411,"


def read(path: Path, *rows: str, header: str = HEADER) -> TripFile:
    path.write_text("\n".join((header, *rows)) + "\n")
    return read_trips(path)


def test_a_trip_has_its_ends_its_time_and_its_length(tmp_path: Path) -> None:
    file = read(tmp_path / "trips.csv", GOOD)
    (trip,) = file.trips
    assert (trip.trip_id, trip.start.latitude, trip.end.longitude) == ("one", 40.752201, -74.002411)
    assert trip.kilometres == pytest.approx(1.449, abs=0.001)
    assert (file.rows, file.skipped) == (1, {})


def test_trips_come_in_order_of_time_whatever_the_zone(tmp_path: Path) -> None:
    file = read(
        tmp_path / "trips.csv",
        GOOD.replace("one", "late").replace("16:00:00", "16:00:02Z"),
        GOOD.replace("one", "early").replace("16:00:00", "18:00:01+02:00"),
        GOOD.replace("one", "first"),
    )
    assert [trip.trip_id for trip in file.trips] == ["first", "early", "late"]
    assert [trip.trip_id for trip in file.first(2)] == ["first", "early"]
    assert file.first(0) == file.trips


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (GOOD.replace("40.752201", "0"), "coordinate zero"),
        (GOOD.replace("-74.002411", "0.0"), "coordinate zero"),
        (GOOD.replace("40.752201", "91"), "outside the earth"),
        (GOOD.replace("-73.989288", "-180.5"), "outside the earth"),
        (GOOD.replace("40.752201", "nan"), "outside the earth"),
        (GOOD.replace("40.752201", ""), "no coordinates"),
        (GOOD.replace("40.752201", "north"), "no coordinates"),
        (GOOD.replace("40.760628", "40.752202").replace("-74.002411", "-73.989289"), "shorter than 200 m"),
        (GOOD.replace("40.760628", "41.760628"), "longer than 60 km"),
        (GOOD.replace("2013-11-18T16:00:00", "yesterday"), "no pickup_time"),
        (GOOD.replace("one", ""), "no trip_id"),
        ("x,short", "no coordinates"),
        (GOOD.replace("one", "good"), "trip_id twice"),
    ],
)
def test_a_row_that_is_no_trip_is_left_out_and_counted(tmp_path: Path, row: str, reason: str) -> None:
    file = read(tmp_path / "trips.csv", GOOD.replace("one", "good"), row)
    assert [trip.trip_id for trip in file.trips] == ["good"]
    assert (file.rows, file.skipped) == (2, {reason: 1})


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"no column dropoff_lat; expected trip_id, "):
        read(tmp_path / "trips.csv", GOOD, header=HEADER.replace("dropoff_lat", "to_lat"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"nowhere\.csv: cannot be read"):
        read_trips(tmp_path / "nowhere.csv")


def test_a_file_without_one_usable_trip_says_why(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"none of 1 rows is a usable trip .*coordinate zero"):
        read(tmp_path / "trips.csv", GOOD.replace("40.752201", "0"))


def test_departures_keep_the_gaps_but_skip_the_long_ones(tmp_path: Path) -> None:
    file = read(
        tmp_path / "trips.csv",
        GOOD,
        GOOD.replace("one", "two").replace("16:00:00", "16:00:07"),
        GOOD.replace("one", "three").replace("2013", "2015"),
    )
    assert departures(file.trips) == [0, 7, 7 + LONGEST_GAP_SECONDS]
