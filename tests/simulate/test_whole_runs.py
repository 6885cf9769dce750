"""A small demo and a small simulation against a server of their own, as somebody who types the command gets them."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from nebengjek.simulate import DemoOptions, SimulationOptions, demo, simulate
from nebengjek.simulate.options import check_pace, effective_ping_seconds
from nebengjek.simulate.places import LANDMARKS
from nebengjek.simulate.run import Identities
from nebengjek.simulate.server import environment
from nebengjek.users.numbers import parse_msisdn, parse_plate

TRIPS = """trip_id,pickup_time,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon
one,2013-11-18T16:00:00,40.752201,-73.989288,40.760628,-74.002411
two,2013-11-18T16:00:01,40.746410,-73.991447,40.759705,-73.973557
nowhere,2013-11-18T16:00:01,0,0,40.759705,-73.973557
three,2013-11-18T16:00:02,40.752201,-73.979288,40.744628,-73.992411
four,2013-11-18T16:00:02,40.750201,-73.983288,40.744628,-73.992411
"""


@pytest.fixture(autouse=True)
def everything_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "REDIS_URL", "DATABASE_URL", "NEBENGJEK_SETTINGS"):
        monkeypatch.delenv(name, raising=False)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_a_small_demo_ends_with_every_ride_paid(tmp_path: Path) -> None:
    console, out = quiet(), tmp_path / "demo.json"
    options = DemoOptions(drivers=4, passengers=5, speed=600, ping_seconds=40, json=out)
    code = await demo(options, console=console)
    result = json.loads(out.read_bytes())
    assert code == 0, said(console)
    assert result["passed"]
    assert result["figures"]["completed"] == 5
    assert result["figures"]["billed_km"] == pytest.approx(result["figures"]["driven_km"], rel=0.01)
    assert result["figures"]["payouts"] + result["figures"]["fees"] == result["figures"]["asked"] > 0
    assert result["streams"]["messages"]["RIDE_STREAM"] > 5 * 4
    assert all(trip["ride"]["status"] == "COMPLETED" for trip in result["trips"])
    assert "5 of 5" in said(console)


async def test_a_small_simulation_cancels_rejects_and_still_adds_up(tmp_path: Path) -> None:
    trips, console, out = tmp_path / "trips.csv", quiet(), tmp_path / "out.json"
    trips.write_text(TRIPS)
    options = SimulationOptions(
        trips=trips, drivers=4, speed=600, ping_seconds=40, accept=0.7, cancel=0.5, seed=5, json=out
    )
    code = await simulate(options, console=console)
    result = json.loads(out.read_bytes())
    assert code == 0, said(console)
    assert (result["figures"]["trips"], result["figures"]["unfinished"]) == (4, 0)
    assert result["figures"]["cancelled"] == 3
    assert "1 coordinate zero" in said(console)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trips": Path("nowhere.csv")}, "nowhere.csv"),
        ({"speed": 0.5}, "--speed"),
        ({"accept": 0.0}, "--accept"),
        ({"noise_m": 50.0}, "--noise-m"),
        ({"drivers": 0}, "--drivers"),
    ],
)
async def test_a_run_that_cannot_begin_says_why(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "trips.csv").write_text(TRIPS)
    console = quiet()
    options = SimulationOptions(**{"trips": tmp_path / "trips.csv", **changes})  # type: ignore[arg-type]
    assert await simulate(options, console=console) == 2
    assert message in said(console)


async def test_a_server_that_cannot_start_is_shown_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBENGJEK__MATCH__RADIUS_KM", "far")
    console = quiet()
    assert await demo(console=console) == 2
    assert "match.radius_km" in said(console).lower()


def test_the_child_gets_the_real_servers_but_no_profile() -> None:
    given = {"NATS_URL": "nats://x", "NEBENGJEK_SETTINGS": "settings/production.toml", "PATH": os.defpath}
    child = environment(given, Path("/somewhere"))
    assert child == {
        "NATS_URL": "nats://x",
        "PATH": os.defpath,
        "DATABASE_URL": "sqlite:////somewhere/demo.sqlite3",
    }
    assert environment({"DATABASE_URL": "postgresql://x"}, Path())["DATABASE_URL"] == "postgresql://x"


def test_numbers_and_plates_are_valid_and_unique() -> None:
    identities = Identities()
    numbers = [identities.msisdn() for _ in range(500)]
    plates = [identities.plate() for _ in range(500)]
    assert [parse_msisdn(number) for number in numbers] == numbers
    assert [parse_plate(plate) for plate in plates] == plates
    assert len(set(numbers)) == len(set(plates)) == 500


def test_a_phone_never_says_more_than_the_server_takes() -> None:
    check_pace(60, 4, 5)
    assert effective_ping_seconds(60, 4) == 4
    assert effective_ping_seconds(320, 4) == 20


def test_landmarks_lie_in_jakarta() -> None:
    assert len(LANDMARKS) == len({place.name for place in LANDMARKS}) >= 20
    for place in LANDMARKS:
        assert -6.38 < place.location.latitude < -6.08
        assert 106.68 < place.location.longitude < 106.98
