"""Kilometres to rupiah: exact decimal arithmetic, every rounding half-up, once per term."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from msgspec import Struct

from nebengjek.contracts.geo import DETOUR, Location, eta_minutes
from nebengjek.contracts.geo import distance_km as great_circle_km

MILLIMETRES_PER_KM = 1_000_000
# Once around the earth. Nothing that a phone can drive; a total beyond it is a broken message.
_FARTHEST_KM = 40_075.0


class Bill(Struct, frozen=True, kw_only=True):
    """What is to be paid and who gets it, in rupiah: ``adjusted_cost == admin_fee + driver_payout``."""

    total_cost: int
    adjusted_cost: int
    admin_fee: int
    driver_payout: int


class Estimate(Struct, frozen=True, kw_only=True):
    """What a trip would be: street kilometres, whole minutes, rupiah."""

    distance_km: float
    duration_minutes: int
    fare: int


def half_up(value: Decimal) -> int:
    """The nearest whole number; 0.5 goes up. ``value`` is not negative."""
    return int(value.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _exact(value: float | Decimal) -> Decimal:
    # The shortest decimal that reads back as this float: 0.7 is 7/10, not 0.6999999999999999556.
    return value if isinstance(value, Decimal) else Decimal(repr(value))


def millimetres(km: float) -> int:
    """Kilometres as a whole number, so that sums of distances are exact.

    Raises ValueError for what no ride can be long: negative, not a number, more than once around the earth.
    """
    if not 0 <= km <= _FARTHEST_KM:
        raise ValueError(f"{km!r} km is no distance of a ride")
    return half_up(_exact(km) * MILLIMETRES_PER_KM)


def kilometres(mm: int) -> float:
    return mm / MILLIMETRES_PER_KM


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a kilometre costs (rupiah), the least that a ride costs (rupiah), the platform's share (percent)."""

    rate_per_km: int
    minimum_fare: int = 0
    admin_fee_percent: float = 5

    def fare(self, km: float | Decimal) -> int:
        """The price of ``km`` kilometres in whole rupiah, at least the minimum fare."""
        return max(half_up(_exact(km) * self.rate_per_km), self.minimum_fare)

    def fare_mm(self, mm: int) -> int:
        """``fare`` of a distance in millimetres, without a detour over floats."""
        return self.fare(Decimal(mm).scaleb(-6))

    def bill(self, km: float | Decimal, factor: float = 1.0) -> Bill:
        """The bill of ``km`` kilometres when the driver asks ``factor`` (0 < factor <= 1) of the fare."""
        return self.split(self.fare(km), factor)

    def split(self, total_cost: int, factor: float) -> Bill:
        """Fare to adjusted cost to fee and payout, each rounded once."""
        adjusted = half_up(total_cost * _exact(factor))
        fee = half_up(adjusted * _exact(self.admin_fee_percent) / 100)
        return Bill(total_cost=total_cost, adjusted_cost=adjusted, admin_fee=fee, driver_payout=adjusted - fee)


def estimate(tariff: Tariff, start: Location, end: Location) -> Estimate:
    """What a ride would cost: the great circle times the usual detour of a street."""
    direct = great_circle_km(start, end)
    distance = kilometres(half_up(_exact(direct * DETOUR) * MILLIMETRES_PER_KM))
    return Estimate(distance_km=distance, duration_minutes=eta_minutes(direct), fare=tariff.fare(distance))
