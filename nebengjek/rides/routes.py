"""Rides over HTTP: the commands of the socket, one's own rides, an estimate, and what an operator may do."""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Annotated, Any

from litestar import Router, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Struct

from nebengjek.contracts.geo import Location
from nebengjek.contracts.message import is_id
from nebengjek.contracts.rides import (
    AdjustmentFactor,
    ArriveRide,
    Bill,
    CancelRide,
    PaymentStatus,
    PayRide,
    Ride,
    RideDetails,
    RideState,
    RideStatus,
    StartRide,
)
from nebengjek.errors import Invalid
from nebengjek.rides.cashier import Cashier
from nebengjek.rides.fares import Estimate
from nebengjek.rides.meter import Meter
from nebengjek.rides.reading import ReviewedRide, RideReader
from nebengjek.rides.service import RideService
from nebengjek.web import Identity

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Any]

_DEGREES = re.compile(r"[+-]?[0-9]{1,3}(\.[0-9]{1,20})?")


class Arrival(Struct, frozen=True, kw_only=True):
    adjustment_factor: AdjustmentFactor | None = None


class Paying(Struct, frozen=True, kw_only=True):
    amount: int
    method: str = "simulated"


class Cancellation(Struct, frozen=True, kw_only=True):
    reason: str | None = None


class RidePage(Struct, frozen=True, kw_only=True):
    """``next_cursor``: hand it in as ``cursor`` for what follows; null at the end."""

    items: list[Ride]
    next_cursor: str | None


class ReviewedRides(Struct, frozen=True, kw_only=True):
    items: list[ReviewedRide]


@post("/rides/{ride_id:str}/start", status_code=200, opt={"event": "ride.start"}, summary="The passenger is on board")
async def start(
    ride_id: FromPath[str], user: NamedDependency[Identity], rides: NamedDependency[RideService]
) -> RideStatus:
    return await rides.start(StartRide(ride_id=ride_id, user_id=user.user_id))


@post(
    "/rides/{ride_id:str}/arrive",
    status_code=200,
    opt={"event": "ride.arrive"},
    summary="End the ride and make the bill",
)
async def arrive(
    ride_id: FromPath[str],
    user: NamedDependency[Identity],
    meter: NamedDependency[Meter],
    data: JSONBody[Arrival | None] = None,
) -> Bill:
    factor = data.adjustment_factor if data is not None else None
    return await meter.arrive(
        ArriveRide(ride_id=ride_id, user_id=user.user_id, adjustment_factor=1.0 if factor is None else factor)
    )


@post(
    "/rides/{ride_id:str}/pay",
    status_code=200,
    opt={"event": "ride.pay"},
    summary="Pay, or say that it was paid in cash",
)
async def pay(
    ride_id: FromPath[str],
    user: NamedDependency[Identity],
    cashier: NamedDependency[Cashier],
    data: JSONBody[Paying],
) -> PaymentStatus:
    command = PayRide(ride_id=ride_id, user_id=user.user_id, amount=data.amount, method=data.method)
    return await cashier.pay(command)


@post("/rides/{ride_id:str}/cancel", status_code=200, opt={"event": "ride.cancel"}, summary="Cancel before the start")
async def cancel(
    ride_id: FromPath[str],
    user: NamedDependency[Identity],
    rides: NamedDependency[RideService],
    data: JSONBody[Cancellation | None] = None,
) -> RideStatus:
    reason = data.reason if data is not None else None
    return await rides.cancel(CancelRide(ride_id=ride_id, user_id=user.user_id, reason=reason))


@get("/rides", summary="One's own rides, newest first")
async def own_rides(
    user: NamedDependency[Identity],
    reader: NamedDependency[RideReader],
    status: FromQuery[RideState | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    cursor: FromQuery[str | None] = None,
) -> RidePage:
    before = _read_cursor(cursor) if cursor is not None else None
    items, last = await reader.page(user.user_id, status=status, before=before, limit=limit)
    return RidePage(items=items, next_cursor=_cursor(last) if last is not None else None)


@get("/rides/{ride_id:str}", summary="One of one's own rides, with its ledger")
async def one_ride(
    ride_id: FromPath[str], user: NamedDependency[Identity], reader: NamedDependency[RideReader]
) -> RideDetails:
    return await reader.details(ride_id, user.user_id)


@get("/fares/estimate", summary="What a trip would cost")
async def fare_estimate(
    reader: NamedDependency[RideReader],
    start: Annotated[str, QueryParameter(name="from", description="latitude,longitude")],
    end: Annotated[str, QueryParameter(name="to", description="latitude,longitude")],
) -> Estimate:
    return reader.estimate(_place(start, "from"), _place(end, "to"))


@get("/admin/rides", summary="Anybody's rides, newest first")
async def all_rides(
    reader: NamedDependency[RideReader],
    status: FromQuery[RideState | None] = None,
    review: FromQuery[bool | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
) -> ReviewedRides:
    return ReviewedRides(items=await reader.admin_rides(status, review, limit))


@post("/admin/rides/{ride_id:str}/arrive", status_code=200, summary="End a ride for a driver whose phone is gone")
async def admin_arrive(ride_id: FromPath[str], meter: NamedDependency[Meter]) -> Bill:
    return await meter.admin_arrive(ride_id)


@post("/admin/rides/{ride_id:str}/cancel", status_code=200, summary="Cancel a ride that has not arrived, unbilled")
async def admin_cancel(
    ride_id: FromPath[str], rides: NamedDependency[RideService], data: JSONBody[Cancellation | None] = None
) -> RideStatus:
    return await rides.admin_cancel(ride_id, data.reason if data is not None else None)


def routes(service: RideService, meter: Meter, cashier: Cashier, reader: RideReader) -> Router:
    """For people with a token; ``user`` (Identity) is a dependency of the application."""
    return Router(
        path="/",
        route_handlers=[start, arrive, pay, cancel, own_rides, one_ride, fare_estimate],
        dependencies=_provide(rides=service, meter=meter, cashier=cashier, reader=reader),
        tags=["rides"],
    )


def admin_routes(service: RideService, meter: Meter, reader: RideReader, guard: Guard) -> Router:
    """For operators; ``guard`` refuses everybody else."""
    return Router(
        path="/",
        route_handlers=[all_rides, admin_arrive, admin_cancel],
        dependencies=_provide(rides=service, meter=meter, reader=reader),
        guards=[guard],
        tags=["admin"],
    )


def _provide(**parts: object) -> dict[str, Provide]:
    return {name: Provide(_always(part), sync_to_thread=False) for name, part in parts.items()}


def _always(part: object) -> Callable[[], object]:
    return lambda: part


def _cursor(ride_id: str) -> str:
    return base64.urlsafe_b64encode(ride_id.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> str:
    """Raises Invalid."""
    try:
        ride_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise Invalid("cursor: is not one that this server gave") from error
    if not is_id(ride_id):
        raise Invalid("cursor: is not one that this server gave")
    return ride_id


def _place(text: str, name: str) -> Location:
    """Raises Invalid, naming the parameter."""
    latitude, separator, longitude = text.partition(",")
    if not separator or not _DEGREES.fullmatch(latitude) or not _DEGREES.fullmatch(longitude):
        raise Invalid(f"{name}: latitude,longitude in degrees, such as -6.1754,106.8272")
    place = Location(latitude=float(latitude), longitude=float(longitude))
    if not (-90 <= place.latitude <= 90 and -180 <= place.longitude <= 180):
        raise Invalid(f"{name}: latitude is -90 to 90, longitude -180 to 180")
    return place
