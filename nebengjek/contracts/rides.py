"""What rides says: from the pick-up to the payment. Money is integer rupiah, distances are kilometres."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from nebengjek.contracts.geo import Location
from nebengjek.contracts.message import Event, Query

RideState = Literal["PICKUP", "ONGOING", "ARRIVED", "COMPLETED", "CANCELLED"]
PaymentState = Literal["PENDING", "ACCEPTED", "REJECTED", "OVERDUE"]


class Payment(Struct, frozen=True, kw_only=True):
    payment_id: str
    status: PaymentState
    method: str | None
    attempts: int


class LedgerEntry(Struct, frozen=True, kw_only=True):
    """Kilometres booked by one aggregate, and what they cost unrounded to the ride's fare."""

    sequence: int
    distance_km: float
    cost: int
    created_at: datetime


class Ride(Struct, frozen=True, kw_only=True):
    """A ride as its parties read it. ``location``: the pick-up; the costs are null until it arrived."""

    ride_id: str
    match_id: str
    driver_id: str
    passenger_id: str
    status: RideState
    location: Location
    target_location: Location
    distance_km: float
    total_cost: int | None
    adjustment_factor: float | None
    adjusted_cost: int | None
    admin_fee: int | None
    driver_payout: int | None
    payment: Payment | None
    created_at: datetime
    started_at: datetime | None
    arrived_at: datetime | None
    completed_at: datetime | None
    cancelled_at: datetime | None
    cancel_reason: str | None


class RideDetails(Ride, frozen=True, kw_only=True):
    ledger: list[LedgerEntry]


class RideEvent(Event, frozen=True, kw_only=True):
    ride_id: str
    match_id: str
    driver_id: str
    passenger_id: str
    version: int
    key: ClassVar[str] = "ride_id"


class RidePickup(RideEvent, frozen=True, kw_only=True, tag="ride.pickup"):
    """The driver is on the way."""

    status: RideState
    location: Location
    target_location: Location
    created_at: datetime


class RideStarted(RideEvent, frozen=True, kw_only=True, tag="ride.started"):
    """The passenger is on board. ``location``: where the distance begins; ``start_time``: its phone time."""

    status: RideState
    location: Location
    target_location: Location
    start_time: datetime
    started_at: datetime


class RideProgress(RideEvent, frozen=True, kw_only=True, tag="ride.progress"):
    """The ride came further: kilometres booked so far and what they cost."""

    distance_km: float
    fare: int
    sequence: int


class RideArrived(RideEvent, frozen=True, kw_only=True, tag="ride.arrived"):
    """The bill."""

    status: RideState
    distance_km: float
    total_cost: int
    adjustment_factor: float
    adjusted_cost: int
    admin_fee: int
    driver_payout: int
    payment_id: str
    arrived_at: datetime


class RidePayment(RideEvent, frozen=True, kw_only=True, tag="ride.payment"):
    """The result of one attempt to pay, or OVERDUE; ``reason`` of a refusal."""

    payment_id: str
    status: PaymentState
    attempt: int
    amount: int
    method: str | None = None
    reason: str | None = None


class RideCompleted(RideEvent, frozen=True, kw_only=True, tag="ride.completed"):
    """The ride is over, paid or (after the payment's time) overdue."""

    ride: Ride


class RideCancelled(RideEvent, frozen=True, kw_only=True, tag="ride.cancelled"):
    """The ride ended without a bill."""

    status: RideState
    reason: str | None
    cancelled_at: datetime


class RideStatus(Struct, frozen=True, kw_only=True):
    ride_id: str
    status: RideState


class Bill(Struct, frozen=True, kw_only=True):
    ride_id: str
    status: RideState
    distance_km: float
    total_cost: int
    adjusted_cost: int
    admin_fee: int
    driver_payout: int
    payment_id: str


class PaymentStatus(Struct, frozen=True, kw_only=True):
    payment_id: str
    status: PaymentState
    reason: str | None = None


class StartRide(Query[RideStatus], frozen=True, kw_only=True, tag="rides.start"):
    ride_id: str
    user_id: str


AdjustmentFactor = Annotated[float, Meta(gt=0, le=1)]


class ArriveRide(Query[Bill], frozen=True, kw_only=True, tag="rides.arrive"):
    ride_id: str
    user_id: str
    adjustment_factor: AdjustmentFactor = 1.0


class PayRide(Query[PaymentStatus], frozen=True, kw_only=True, tag="rides.pay"):
    ride_id: str
    user_id: str
    amount: int
    method: str = "simulated"


class CancelRide(Query[RideStatus], frozen=True, kw_only=True, tag="rides.cancel"):
    ride_id: str
    user_id: str
    reason: str | None = None


class OngoingRide(Struct, frozen=True, kw_only=True):
    """``ride``: the one that has not ended, or ended unpaid; ``payment_due``: that one bars the next search."""

    ride: Ride | None
    payment_due: bool = False


class RideOfUser(Query[OngoingRide], frozen=True, kw_only=True, tag="rides.of_user"):
    user_id: str


class RideList(Struct, frozen=True, kw_only=True):
    rides: list[Ride]


class RecentRides(Query[RideList], frozen=True, kw_only=True, tag="rides.recent"):
    """A user's own rides, newest first."""

    user_id: str
    limit: Annotated[int, Meta(ge=1, le=100)] = 5


class RideDetailsOf(Query[RideDetails], frozen=True, kw_only=True, tag="rides.details"):
    """One ride of a user's with its ledger; NotFound for a stranger."""

    ride_id: str
    user_id: str


class RideOfMatch(Query[OngoingRide], frozen=True, kw_only=True, tag="rides.of_match"):
    """Was a ride opened for this match, whatever became of it?"""

    match_id: str
