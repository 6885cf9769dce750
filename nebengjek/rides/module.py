"""The table of contents of rides: what it hears, answers, serves and sweeps."""

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.location import CloseRide, LatestLocations, LocationAggregate
from nebengjek.contracts.match import MatchAccepted
from nebengjek.contracts.rides import (
    ArriveRide,
    CancelRide,
    PayRide,
    RecentRides,
    RideArrived,
    RideCancelled,
    RideCompleted,
    RideDetailsOf,
    RideOfMatch,
    RideOfUser,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
    StartRide,
)
from nebengjek.database import Database
from nebengjek.module import Module, answer, every, on
from nebengjek.rides.cashier import Cashier
from nebengjek.rides.fares import Tariff
from nebengjek.rides.meter import Meter
from nebengjek.rides.payments import PaymentGateway
from nebengjek.rides.reading import RideReader
from nebengjek.rides.routes import Guard, admin_routes, routes
from nebengjek.rides.service import RideService


def rides(
    bus: MessageBus,
    database: Database,
    gateway: PaymentGateway,
    clock: Clock,
    *,
    rate_per_km: int = 3000,
    minimum_fare: int = 0,
    admin_fee_percent: float = 5,
    start_radius_m: float = 100.0,
    pickup_ttl: float = 7200.0,
    payment_ttl: float = 900.0,
    arrival_wait: float = 5.0,
    charge_timeout: float = 5.0,
    settle_after: float = 10.0,
    sweep_seconds: float = 1.0,
    admin_guard: Guard | None = None,
) -> Module:
    """Money in rupiah, times in seconds. Without ``admin_guard`` the operators' routes are not served."""
    tariff = Tariff(rate_per_km, minimum_fare, admin_fee_percent)
    service = RideService(bus, database, clock, tariff, start_radius_m=start_radius_m, pickup_ttl=pickup_ttl)
    meter = Meter(bus, database, clock, admin_fee_percent=admin_fee_percent, arrival_wait=arrival_wait)
    cashier = Cashier(
        bus,
        database,
        gateway,
        clock,
        payment_ttl=payment_ttl,
        charge_timeout=charge_timeout,
        settle_after=settle_after,
    )
    reader = RideReader(database, tariff)
    served = [routes(service, meter, cashier, reader)]
    if admin_guard is not None:
        served.append(admin_routes(service, meter, reader, admin_guard))
    return Module(
        name="rides",
        routes=served,
        says=[RidePickup, RideStarted, RideProgress, RideArrived, RidePayment, RideCompleted, RideCancelled],
        hears=[on(MatchAccepted, service.open), on(LocationAggregate, meter.book, ordered_by="ride_id")],
        asks=[LatestLocations, CloseRide],
        answers=[
            answer(StartRide, service.start),
            answer(ArriveRide, meter.arrive),
            answer(PayRide, cashier.pay),
            answer(CancelRide, service.cancel),
            answer(RideOfUser, reader.of_user),
            answer(RideOfMatch, reader.of_match),
            answer(RecentRides, reader.recent),
            answer(RideDetailsOf, reader.details_of),
        ],
        sweeps=[
            every(sweep_seconds, service.sweep),
            every(sweep_seconds, cashier.settle_open),
            every(sweep_seconds, cashier.end_unpaid),
        ],
    )
