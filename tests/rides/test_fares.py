"""Kilometres to rupiah: exact, half-up, and the parts always make the whole."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebengjek.contracts.geo import Location
from nebengjek.rides.fares import Tariff, estimate, half_up, kilometres, millimetres

distances = st.floats(min_value=0, max_value=2000, allow_nan=False)
factors = st.floats(min_value=0, max_value=1, exclude_min=True)
tariffs = st.builds(
    Tariff,
    st.integers(0, 100_000),
    st.integers(0, 50_000),
    st.one_of(st.integers(0, 100), st.decimals(0, 100, places=2).map(float)),
)


@pytest.mark.parametrize(
    ("km", "fare"),
    [(0, 0), (1.0, 3000), (0.0001, 0), (0.0005, 2), (0.000166, 0), (0.000167, 1), (2.3335, 7001), (12.3456, 37037)],
)
def test_a_kilometre_costs_the_rate_and_half_a_rupiah_goes_up(km: float, fare: int) -> None:
    assert Tariff(3000).fare(km) == fare


def test_a_half_goes_up_where_a_float_would_fall_short() -> None:
    # 1.005 x 100 is 100.49999999999999 in floats.
    assert Tariff(100).fare(1.005) == 101
    assert [half_up(Decimal(text)) for text in ("0.5", "1.5", "2.5", "2.4999")] == [1, 2, 3, 2]


def test_the_bill_rounds_each_term_once_in_its_order() -> None:
    bill = Tariff(3000).bill(3.337, 0.85)
    assert (bill.total_cost, bill.adjusted_cost, bill.admin_fee, bill.driver_payout) == (10011, 8509, 425, 8084)


def test_a_ride_costs_at_least_the_minimum_fare() -> None:
    tariff = Tariff(3000, minimum_fare=8000)
    assert tariff.fare(0) == 8000
    assert tariff.fare(2.5) == 8000
    assert tariff.fare(3) == 9000


@given(tariffs, distances, factors)
def test_fee_and_payout_make_the_adjusted_cost(tariff: Tariff, km: float, factor: float) -> None:
    bill = tariff.bill(km, factor)
    assert bill.admin_fee + bill.driver_payout == bill.adjusted_cost
    assert 0 <= bill.adjusted_cost <= bill.total_cost
    assert 0 <= bill.driver_payout <= bill.adjusted_cost
    exact = Decimal(repr(km)) * tariff.rate_per_km
    assert bill.total_cost == tariff.minimum_fare or -1 <= 2 * (exact - bill.total_cost) < 1
    assert bill.total_cost >= tariff.minimum_fare


@given(tariffs, distances, distances)
def test_farther_is_never_cheaper(tariff: Tariff, a: float, b: float) -> None:
    assert tariff.fare(min(a, b)) <= tariff.fare(max(a, b))


@given(distances)
def test_millimetres_round_to_the_nearest_and_come_back(km: float) -> None:
    mm = millimetres(km)
    assert abs(Decimal(mm) - Decimal(repr(km)) * 1_000_000) <= Decimal("0.5")
    assert millimetres(kilometres(mm)) == mm
    assert Tariff(3000).fare(kilometres(mm)) == Tariff(3000).fare_mm(mm)


@pytest.mark.parametrize("km", [-0.001, float("nan"), float("inf"), 1e9])
def test_what_no_ride_can_be_long_is_refused(km: float) -> None:
    with pytest.raises(ValueError, match="no distance"):
        millimetres(km)


def test_an_estimate_is_the_great_circle_with_its_detour() -> None:
    monas, blok_m = Location(latitude=-6.1754, longitude=106.8272), Location(latitude=-6.2443, longitude=106.7982)
    found = estimate(Tariff(3000), monas, blok_m)
    assert found.distance_km == pytest.approx(1.4 * 8.3, abs=0.2)
    assert found.fare == Tariff(3000).fare(found.distance_km)
    assert found.duration_minutes == 35
    assert estimate(Tariff(3000), monas, monas).fare == 0
