"""Rides under way: who is on one, how far it has come, and how long it was.

What a ride is and what was told of it lies in SQL; the fast store follows. When that was lost, ``restore`` puts the
open rides back, and a ride goes on from its last checkpoint.
"""

import asyncio
from collections.abc import Sequence

import structlog

from nebengjek.bus.errors import ApiError
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Point
from nebengjek.contracts.location import CloseRide, LocationAggregate, LocationUpdate, RideDistance
from nebengjek.contracts.rides import RideArrived, RideCancelled, RideCompleted, RidePickup, RideStarted
from nebengjek.database import Database
from nebengjek.errors import Unavailable
from nebengjek.location import records
from nebengjek.location.odometer import Fold, Rules, differ, whole
from nebengjek.location.store import PathKey, Points, Track

STREAM = "LOCATION_STREAM"
CONSUMER = "location_update_location"
FOLDED_POLL = 0.01
NO_MESSAGE, NO_CONSUMER, NO_STREAM = 10037, 10014, 10059

log = structlog.stdlib.get_logger("nebengjek.location")


class Journeys:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        points: Points,
        clock: Clock,
        rules: Rules,
        *,
        ledger_step_km: float,
        arrival_wait: float,
        path_ttl: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._points = points
        self._clock = clock
        self._rules = rules
        self._step_km = ledger_step_km
        self._arrival_wait = arrival_wait
        self._path_ttl = path_ttl

    # -- who is on a ride

    async def pickup(self, event: RidePickup) -> None:
        await self._keep(
            Track(
                ride_id=event.ride_id,
                driver_id=event.driver_id,
                passenger_id=event.passenger_id,
                pickup=event.location,
                target=event.target_location,
            )
        )

    async def started(self, event: RideStarted) -> None:
        place = event.location
        await self._keep(
            Track(
                ride_id=event.ride_id,
                driver_id=event.driver_id,
                passenger_id=event.passenger_id,
                target=event.target_location,
                start=Point(latitude=place.latitude, longitude=place.longitude, timestamp=event.start_time),
            )
        )

    async def _keep(self, said: Track) -> None:
        """Follow a ride with all that is known of it, unless it has ended: events may overtake each other."""
        # Fast first: the phones know already, and their next points belong to the ride.
        await self._points.track(said, self._path_ttl)
        async with self._database.begin() as tx:
            row = await records.follow(tx, said, self._clock.now())
        known = records.track_of(row)
        if row.ended:
            await self._points.untrack(said.ride_id, (said.driver_id, said.passenger_id), self._path_ttl)
        elif known != said:
            await self._points.track(known, self._path_ttl)

    async def ended(self, event: RideArrived | RideCompleted | RideCancelled) -> None:
        track = Track(ride_id=event.ride_id, driver_id=event.driver_id, passenger_id=event.passenger_id)
        async with self._database.begin() as tx:
            await records.end(tx, track, self._clock.now())
        await self._points.untrack(event.ride_id, (event.driver_id, event.passenger_id), self._path_ttl)

    async def restore(self) -> None:
        """Put the open rides back into a fast store that has lost them, as one in this process has at each start."""
        try:
            if not await self._points.is_blank():
                return
            async with self._database.read() as tx:
                tracks = await records.open_rides(tx)
            for track in tracks:
                await self._points.track(track, self._path_ttl)
            await self._points.mark()
        except Unavailable as error:
            log.warning("rides.not_restored", error=str(error))
            return
        if tracks:
            log.info("rides.restored", rides=len(tracks))

    # -- how far it has come

    async def follow(self, accepted: Sequence[LocationUpdate], tracks: dict[str, Track]) -> None:
        """Add the points of a batch to their rides' paths, and see how far the rides have come."""
        new: dict[PathKey, list[Point]] = {}
        moved: dict[str, Track] = {}
        for event in accepted:
            track = tracks.get(event.user_id)
            if track is not None:
                new.setdefault((track.ride_id, event.user_id), []).append(event.point)
                if track.start is not None:
                    moved[track.ride_id] = track
        if new:
            await self._points.append(new, self._path_ttl)
        if not moved:
            return
        folds = await self._points.progress(moved)
        for ride_id, track in moved.items():
            fold = folds.get(ride_id)
            if fold is None:
                folds[ride_id] = fold = (await self._measure(track))[0]
            else:
                for _, phone, point in _in_order(new, track):
                    (fold.driver if phone == 0 else fold.passenger)(point, self._rules)
            if fold.total_km - fold.told_km >= self._step_km:
                await self._tell(track, fold)
        await self._points.set_progress(folds, self._path_ttl)

    async def _tell(self, track: Track, fold: Fold) -> None:
        """The next aggregate, with its checkpoint, in one transaction; nothing when another pod has said it."""
        async with self._database.begin() as tx:
            if await records.advance(tx, track.ride_id, fold, self._clock.now()):
                aggregate = LocationAggregate(
                    ride_id=track.ride_id,
                    sequence=fold.sequence + 1,
                    distance_km=fold.total_km - fold.told_km,
                    total_km=fold.total_km,
                )
                await self._bus.outbox.add(tx, aggregate)
                told, sequence = fold.total_km, fold.sequence + 1
            else:
                row = await records.ride(tx, track.ride_id)
                told, sequence = (row.total_km, row.sequence) if row is not None else (fold.told_km, fold.sequence)
        fold.told_km, fold.sequence = told, sequence

    async def _measure(self, track: Track) -> tuple[Fold, bool]:
        """The whole path as far as it is here, and whether the two phones disagree.

        What was told to rides before the fast store was lost has been driven, although its points are gone: then the
        ride goes on from the checkpoint. Neither way can be longer than what was driven, so the longer one counts.
        """
        assert track.start is not None
        driver = await self._points.path(track.ride_id, track.driver_id)
        passenger = await self._points.path(track.ride_id, track.passenger_id)
        async with self._database.read() as tx:
            row = await records.ride(tx, track.ride_id)
        fold = whole(driver, passenger, track.start, self._rules)
        if row is not None:
            anchor = records.anchor_of(row)
            if anchor is not None:
                since = whole(driver, passenger, anchor, self._rules)
                since.total_km += row.total_km
                fold = max(fold, since, key=lambda one: one.total_km)
            fold.told_km, fold.sequence = row.total_km, row.sequence
        return fold, differ(driver, passenger, track.start, self._rules)

    # -- how long it was

    async def close(self, query: CloseRide) -> RideDistance:
        """The whole path, once everything published before the question is in it; the same answer again later."""
        async with self._database.read() as tx:
            row = await records.ride(tx, query.ride_id)
        if row is None or not row.closed:
            await self._folded((query.driver_id, query.passenger_id))
            track = Track(
                ride_id=query.ride_id, driver_id=query.driver_id, passenger_id=query.passenger_id, start=query.start
            )
            fold, review = await self._measure(track)
            async with self._database.begin() as tx:
                row = await records.close(tx, track, fold.total_km, review=review, now=self._clock.now())
        return RideDistance(total_km=row.total_km, sequence=row.sequence, review=row.review)

    async def _folded(self, user_ids: Sequence[str]) -> None:
        """Wait until the points that are in the stream now have been handled, at most ``arrival_wait``."""
        last = 0
        for user_id in user_ids:
            try:
                subject = f"location.update.{user_id}"
                last = max(last, (await self._bus.broker.get_message(STREAM, last_by_subject=subject)).seq)
            except ApiError as error:
                if error.code not in (NO_MESSAGE, NO_STREAM):
                    raise
        if not last:
            return
        try:
            async with asyncio.timeout(self._arrival_wait):
                while await self._floor() < last:  # noqa: ASYNC110
                    # Another pod may be the one that folds: there is no event of ours to wait for.
                    await asyncio.sleep(FOLDED_POLL)
        except TimeoutError:
            log.warning("ride.closed_without_waiting", waited=self._arrival_wait)

    async def _floor(self) -> int:
        """Every point up to this place in the stream has been handled."""
        try:
            return (await self._bus.broker.consumer_info(STREAM, CONSUMER)).ack_floor.stream
        except ApiError as error:
            if error.code not in (NO_CONSUMER, NO_STREAM):
                raise
            return 0  # it is being made again


def _in_order(new: dict[PathKey, list[Point]], track: Track) -> list[tuple[object, int, Point]]:
    """The new points of a ride by time; at the same moment the driver's first (0), then the passenger's (1)."""
    points = [
        (point.timestamp, phone, point)
        for phone, user_id in enumerate((track.driver_id, track.passenger_id))
        for point in new.get((track.ride_id, user_id), ())
    ]
    return sorted(points, key=lambda one: one[:2])
