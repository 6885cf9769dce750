"""What rides says about a ride, made from its row after the change; ``version``: the row's, counted per event."""

from typing import Any

from nebengjek.contracts.geo import Location
from nebengjek.contracts.rides import (
    PaymentState,
    RideArrived,
    RideCancelled,
    RideCompleted,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
)
from nebengjek.rides.fares import kilometres
from nebengjek.rides.payment_store import PaymentRow
from nebengjek.rides.store import RideRow, view


def _about(ride: RideRow, version: int | None = None) -> dict[str, Any]:
    return {
        "ride_id": ride.ride_id,
        "match_id": ride.match_id,
        "driver_id": ride.driver_id,
        "passenger_id": ride.passenger_id,
        "version": ride.version if version is None else version,
    }


def pickup(ride: RideRow) -> RidePickup:
    return RidePickup(
        **_about(ride),
        status=ride.status,
        location=Location(latitude=ride.latitude, longitude=ride.longitude),
        target_location=Location(latitude=ride.target_latitude, longitude=ride.target_longitude),
        created_at=ride.created_at,
    )


def started(ride: RideRow) -> RideStarted:
    start = ride.start
    return RideStarted(
        **_about(ride),
        status=ride.status,
        location=Location(latitude=start.latitude, longitude=start.longitude),
        target_location=Location(latitude=ride.target_latitude, longitude=ride.target_longitude),
        start_time=start.timestamp,
        started_at=_known(ride.started_at),
    )


def progress(ride: RideRow, *, fare: int, sequence: int) -> RideProgress:
    return RideProgress(**_about(ride), distance_km=kilometres(ride.distance_mm), fare=fare, sequence=sequence)


def arrived(ride: RideRow, payment: PaymentRow, version: int) -> RideArrived:
    return RideArrived(
        **_about(ride, version),
        status=ride.status,
        distance_km=kilometres(ride.distance_mm),
        total_cost=_known(ride.total_cost),
        adjustment_factor=_known(ride.adjustment_factor),
        adjusted_cost=_known(ride.adjusted_cost),
        admin_fee=_known(ride.admin_fee),
        driver_payout=_known(ride.driver_payout),
        payment_id=payment.payment_id,
        arrived_at=_known(ride.arrived_at),
    )


def paid(
    ride: RideRow,
    payment: PaymentRow,
    version: int,
    *,
    status: PaymentState,
    method: str | None = None,
    reason: str | None = None,
) -> RidePayment:
    """``status``: how the try ended, which is not always how the payment stands (an overdue one stays overdue)."""
    return RidePayment(
        **_about(ride, version),
        payment_id=payment.payment_id,
        status=status,
        attempt=payment.attempts,
        amount=payment.amount,
        method=method,
        reason=reason,
    )


def completed(ride: RideRow, payment: PaymentRow) -> RideCompleted:
    return RideCompleted(**_about(ride), ride=view(ride, payment))


def cancelled(ride: RideRow) -> RideCancelled:
    return RideCancelled(
        **_about(ride), status=ride.status, reason=ride.cancel_reason, cancelled_at=_known(ride.cancelled_at)
    )


def _known(value: Any) -> Any:
    """A column that the row's state implies. Raises ValueError when it is empty nevertheless."""
    if value is None:
        raise ValueError("a column that this state of a ride implies is empty")
    return value
