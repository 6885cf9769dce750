"""Events of the other modules, as frames to the phones they concern.

An event is acknowledged when its frame is in the mailbox of everybody concerned. Frames are keyed by the event's
message id, so an event that comes twice is shown once.
"""

from collections.abc import Sequence

import msgspec
from msgspec import structs

from nebengjek.bus.handling import Context
from nebengjek.contracts.location import LocationRefused, LocationStored
from nebengjek.contracts.match import MatchAccepted, MatchFound, MatchRejected, MatchUnavailable
from nebengjek.contracts.message import type_of
from nebengjek.contracts.rides import (
    RideArrived,
    RideCancelled,
    RideCompleted,
    RideEvent,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
)
from nebengjek.realtime.delivery import Delivery, encode_frame
from nebengjek.users.frames import Active, ErrorData, Stored, Tracking, Unavailable
from nebengjek.users.service import UsersService


class Phones:
    def __init__(self, delivery: Delivery, service: UsersService) -> None:
        self._delivery = delivery
        self._service = service

    # -- points

    async def stored(self, events: Sequence[LocationStored]) -> None:
        """Confirm to the phone; the other party of its ride sees where it is."""
        show, answer = self._delivery.show, self._delivery.answer
        for event in events:
            if event.frame is not None and event.frame.id is not None:
                answer(event.user_id, event.frame.connection_id, encode_frame("ack", {"id": event.frame.id}))
            show(event.user_id, "location.stored", Stored(location=event.location, geohash=event.geohash))
            if event.other_id is not None and event.ride_id is not None:
                tracking = Tracking(
                    ride_id=event.ride_id,
                    user_id=event.user_id,
                    location=event.location,
                    eta_minutes=event.eta_minutes,
                )
                show(event.other_id, "ride.tracking", tracking, about=event.ride_id)

    async def refused(self, events: Sequence[LocationRefused]) -> None:
        for event in events:
            if event.frame is not None:
                error = ErrorData(code="POINT_REFUSED", message=event.message, id=event.frame.id)
                self._delivery.answer(event.user_id, event.frame.connection_id, encode_frame("error", error))

    # -- matches

    async def match_found(self, event: MatchFound, context: Context) -> None:
        await self._match(event, context)

    async def match_accepted(self, event: MatchAccepted, context: Context) -> None:
        await self._service.accepted(event, context)
        await self._match(event, context)

    async def match_rejected(self, event: MatchRejected, context: Context) -> None:
        await self._service.rejected(event, context)
        await self._match(event, context)

    async def _match(self, event: MatchFound | MatchAccepted | MatchRejected, context: Context) -> None:
        for user_id in (event.match.passenger_id, event.match.driver_id):
            await self._delivery.deliver(user_id, type_of(event), event.match, message_id=context.message_id)

    async def match_unavailable(self, event: MatchUnavailable, context: Context) -> None:
        said = Unavailable(reason=event.reason)
        await self._delivery.deliver(event.passenger_id, "match.unavailable", said, message_id=context.message_id)
        if event.reason != "no_drivers" and await self._service.search_ended(event, context):
            off = Active(is_active=False, reason=event.reason)
            message_id = f"user.finder-off-{event.search_id}"
            await self._delivery.deliver(event.passenger_id, "user.finder", off, message_id=message_id)

    # -- rides

    async def ride(
        self,
        event: RidePickup | RideStarted | RideProgress | RideArrived,
        context: Context,
    ) -> None:
        await self._ride(event, _without_version(event), context)

    async def ride_payment(self, event: RidePayment, context: Context) -> None:
        await self._service.paid(event, context)
        await self._ride(event, _without_version(event), context)

    async def ride_completed(self, event: RideCompleted, context: Context) -> None:
        await self._service.ended(event, context)
        await self._ride(event, event.ride, context)

    async def ride_cancelled(self, event: RideCancelled, context: Context) -> None:
        await self._service.ended(event, context)
        await self._ride(event, _without_version(event), context)

    async def _ride(self, event: RideEvent, data: object, context: Context) -> None:
        for user_id in (event.passenger_id, event.driver_id):
            await self._delivery.deliver(user_id, type_of(event), data, message_id=context.message_id)


def _without_version(event: RideEvent) -> dict[str, object]:
    """What the phone is told: the event's fields, but not how it is counted."""
    fields = structs.asdict(event)
    del fields["version"]
    encoded: dict[str, object] = msgspec.to_builtins(fields, builtin_types=())
    return encoded
