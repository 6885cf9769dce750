"""Points are judged, remembered and confirmed; those of an open ride add up to its distance."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import msgspec
import structlog

from nebengjek.bus.interface import ApiError
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, Point, distance_km, eta_minutes, geohash
from nebengjek.contracts.location import (
    CloseRide,
    LatestLocations,
    LatestPoints,
    LocationAggregate,
    LocationRefused,
    LocationStored,
    LocationUpdate,
    RideDistance,
)
from nebengjek.contracts.rides import RideArrived, RideCancelled, RideCompleted, RidePickup, RideStarted
from nebengjek.database import Database
from nebengjek.location import store
from nebengjek.location.odometer import Fold, Rules, begin, differ, whole
from nebengjek.location.store import Points, Track, UserState

STREAM = "LOCATION_STREAM"
CONSUMER = "location_update_location"
FOLDED_POLL = 0.01
AGREEING = 3
"""So many implausible points in a row that agree among themselves are the truth: the fix before them was bad."""

log = structlog.stdlib.get_logger("nebengjek.location")


class LocationService:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        points: Points,
        clock: Clock,
        rules: Rules,
        *,
        max_clock_skew: float,
        ttl: float,
        ledger_step_km: float,
        arrival_wait: float,
        path_ttl: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._points = points
        self._clock = clock
        self._rules = rules
        self._skew = timedelta(seconds=max_clock_skew)
        self._ttl = ttl
        self._step_km = ledger_step_km
        self._arrival_wait = arrival_wait
        self._path_ttl = path_ttl

    # -- points

    async def update(self, events: Sequence[LocationUpdate]) -> None:
        """Judge a batch; confirm what is accepted once it is remembered, say why of what is not."""
        users = {event.user_id for event in events}
        states = await self._points.load(users)
        tracks = await self._points.tracks(users)
        latest_time = self._clock.now() + self._skew
        accepted: list[LocationUpdate] = []
        refused: list[tuple[LocationUpdate, str]] = []
        changed: dict[str, UserState] = {}
        for event in events:
            reason = self._judge(event, states, changed, latest_time)
            if reason is None:
                accepted.append(event)
            else:
                refused.append((event, reason))
        if changed:
            await self._points.save(changed, self._ttl)
        if tracks:
            await self._follow(accepted, tracks)
        others = {track.other(user_id) for user_id, track in tracks.items()}
        near = await self._points.load(others) if others else {}
        for event in accepted:
            track = tracks.get(event.user_id)
            stored = _stored(event) if track is None else _tracked(event, track, near)
            await self._bus.publish_soon(stored, because=event)
        for event, reason in refused:
            await self._refuse(event, reason, changed)

    def _judge(
        self,
        event: LocationUpdate,
        states: dict[str, UserState],
        changed: dict[str, UserState],
        latest_time: datetime,
    ) -> str | None:
        """None when the point is accepted, else ``future`` or ``teleport``; notes the user's new state."""
        point, user_id = event.point, event.user_id
        if point.timestamp > latest_time:
            return "future"
        state = states.get(user_id)
        if state is None:
            states[user_id] = changed[user_id] = UserState(point=point)
            return None
        known = state.point
        if not self._plausible(known, point):
            if point in state.refused:
                return "teleport"
            run = [*state.refused, point]
            if not all(self._plausible(a, b) for a, b in pairwise(run)):
                run = [point]
            if len(run) < AGREEING:
                states[user_id] = changed[user_id] = UserState(point=known, refused=run)
                return "teleport"
            states[user_id] = changed[user_id] = UserState(point=point)
            return None
        if point.timestamp >= known.timestamp:
            states[user_id] = changed[user_id] = UserState(point=point)
        return None

    def _plausible(self, a: Point, b: Point) -> bool:
        """Could a vehicle have been at both? Points closer than a second are taken as a second apart."""
        # Five metres a second is walking: no need for a sine to believe it (a degree is at most 111.7 km).
        seconds = abs((b.timestamp - a.timestamp).total_seconds()) or 1.0
        seconds = max(seconds, 1.0)
        degrees = abs(b.latitude - a.latitude) + abs(b.longitude - a.longitude)
        allowed_km = self._rules.max_speed_kmh * seconds / 3600
        return degrees * 111.7 <= allowed_km or distance_km(a, b) <= allowed_km

    async def _refuse(self, event: LocationUpdate, reason: str, changed: dict[str, UserState]) -> None:
        message = {
            "future": f"the phone's clock is more than {self._skew.total_seconds():.0f} s ahead",
            "teleport": f"faster than {self._rules.max_speed_kmh:.0f} km/h from the last point",
        }[reason]
        refused = LocationRefused(user_id=event.user_id, reason=reason, message=message, frame=event.frame)
        await self._bus.publish_soon(refused, because=event)
        state = changed.get(event.user_id)
        if reason == "teleport" and state is not None and len(state.refused) == AGREEING - 1:
            async with self._database.begin() as tx:
                await store.flag(tx, event.user_id, "teleport", self._clock.now())

    # -- rides

    async def pickup(self, event: RidePickup) -> None:
        track = Track(
            ride_id=event.ride_id,
            driver_id=event.driver_id,
            passenger_id=event.passenger_id,
            target=event.target_location,
        )
        await self._points.track(track, self._path_ttl)

    async def started(self, event: RideStarted) -> None:
        known = (await self._points.tracks([event.driver_id])).get(event.driver_id)
        target = known.target if known is not None and known.ride_id == event.ride_id else event.target_location
        start = Point(latitude=event.location.latitude, longitude=event.location.longitude, timestamp=event.start_time)
        track = Track(
            ride_id=event.ride_id,
            driver_id=event.driver_id,
            passenger_id=event.passenger_id,
            target=target,
            start=start,
        )
        await self._points.track(track, self._path_ttl)

    async def ended(self, event: RideArrived | RideCompleted | RideCancelled) -> None:
        parties = (event.driver_id, event.passenger_id)
        await self._points.untrack(event.ride_id, parties, self._path_ttl)

    async def _follow(self, accepted: Sequence[LocationUpdate], tracks: dict[str, Track]) -> None:
        """Add the points of a batch to their rides' paths, and see how far the rides have come."""
        moved: dict[str, Track] = {}
        new: dict[tuple[str, str], list[Point]] = {}
        for event in accepted:
            track = tracks.get(event.user_id)
            if track is not None:
                new.setdefault((track.ride_id, event.user_id), []).append(event.point)
                moved[track.ride_id] = track
        for (ride_id, user_id), points in new.items():
            await self._points.append(ride_id, user_id, points, self._path_ttl)
        for ride_id, track in moved.items():
            if track.start is not None:
                driven = new.get((ride_id, track.driver_id), [])
                seen = new.get((ride_id, track.passenger_id), [])
                await self._progress(track, track.start, driven, seen)

    async def _progress(self, track: Track, start: Point, driven: list[Point], seen: list[Point]) -> None:
        fold = await self._points.progress(track.ride_id) or await self._recover(track, start)
        for point in sorted(driven, key=lambda one: one.timestamp):
            fold.add(point, self._rules)
        silence = timedelta(seconds=self._rules.silence)
        if any(point.timestamp - fold.latest.timestamp > silence for point in seen):
            further = await self._whole(track, start)
            further.told_km, further.sequence = fold.told_km, fold.sequence
            fold = further
        if fold.total_km - fold.told_km >= self._step_km:
            await self._tell(track, fold)
        await self._points.set_progress(track.ride_id, fold, self._path_ttl)

    async def _tell(self, track: Track, fold: Fold) -> None:
        """The next aggregate, with its checkpoint, in one transaction; nothing when another pod has said it."""
        async with self._database.begin() as tx:
            if await store.advance(tx, track.ride_id, fold, self._clock.now()):
                aggregate = LocationAggregate(
                    ride_id=track.ride_id,
                    sequence=fold.sequence + 1,
                    distance_km=fold.total_km - fold.told_km,
                    total_km=fold.total_km,
                )
                await self._bus.outbox.add(tx, aggregate)
                told, sequence = fold.total_km, fold.sequence + 1
            else:
                row = await store.checkpoint(tx, track.ride_id)
                told, sequence = (row.total_km, row.sequence) if row is not None else (0.0, 0)
        fold.told_km, fold.sequence = told, sequence

    async def _recover(self, track: Track, start: Point) -> Fold:
        """Where a lost cache goes on: the last checkpoint, or the start."""
        async with self._database.read() as tx:
            row = await store.checkpoint(tx, track.ride_id)
        if row is None or row.anchor is None:
            return begin(start)
        anchor = msgspec.json.decode(row.anchor, type=Point)
        return Fold(anchor=anchor, latest=anchor, total_km=row.total_km, told_km=row.total_km, sequence=row.sequence)

    async def _whole(self, track: Track, start: Point) -> Fold:
        driver = await self._points.path(track.ride_id, track.driver_id)
        passenger = await self._points.path(track.ride_id, track.passenger_id)
        fold = whole(driver, passenger, start, self._rules)
        # What was told to rides before the cache was lost has been driven, although its points are gone.
        recovered = await self._recover(track, start)
        for point in sorted(driver, key=lambda one: one.timestamp):
            recovered.add(point, self._rules)
        return max(fold, recovered, key=lambda one: one.total_km)

    # -- questions

    async def latest(self, query: LatestLocations) -> LatestPoints:
        states = await self._points.load(query.user_ids)
        return LatestPoints(points={user_id: state.point for user_id, state in states.items()})

    async def close(self, query: CloseRide) -> RideDistance:
        """The whole path, once everything published before the question is in it; the same answer again later."""
        await self._folded((query.driver_id, query.passenger_id))
        track = Track(
            ride_id=query.ride_id,
            driver_id=query.driver_id,
            passenger_id=query.passenger_id,
            target=Location(latitude=query.start.latitude, longitude=query.start.longitude),
        )
        fold = await self._whole(track, query.start)
        driver = await self._points.path(query.ride_id, query.driver_id)
        passenger = await self._points.path(query.ride_id, query.passenger_id)
        review = differ(driver, passenger, query.start, self._rules)
        async with self._database.begin() as tx:
            row = await store.close(tx, query.ride_id, fold.total_km, review=review, now=self._clock.now())
        return RideDistance(total_km=row.total_km, sequence=row.sequence, review=row.review)

    async def _folded(self, user_ids: Sequence[str]) -> None:
        """Wait until the points that are in the stream now have been handled, at most ``arrival_wait``."""
        broker = self._bus.broker
        last = 0
        for user_id in user_ids:
            try:
                message = await broker.get_message(STREAM, last_by_subject=f"location.update.{user_id}")
            except ApiError as error:
                if error.code != 10037:
                    raise
            else:
                last = max(last, message.seq)
        if not last:
            return
        try:
            async with asyncio.timeout(self._arrival_wait):
                while (await broker.consumer_info(STREAM, CONSUMER)).ack_floor.stream < last:  # noqa: ASYNC110
                    # Another pod may be the one that folds: there is no event of ours to wait for.
                    await asyncio.sleep(FOLDED_POLL)
        except TimeoutError:
            log.warning("ride.closed_without_waiting", waited=self._arrival_wait)


def _stored(event: LocationUpdate) -> LocationStored:
    point = event.point
    return LocationStored(
        user_id=event.user_id,
        location=Location(latitude=point.latitude, longitude=point.longitude),
        geohash=geohash(point),
        frame=event.frame,
    )


def _tracked(event: LocationUpdate, track: Track, near: dict[str, UserState]) -> LocationStored:
    """During the pick-up the way is to the other party, then to the target."""
    other = near.get(track.other(event.user_id))
    goal: Location | Point | None = track.target if track.start is not None else other.point if other else None
    return LocationStored(
        user_id=event.user_id,
        location=Location(latitude=event.point.latitude, longitude=event.point.longitude),
        geohash=geohash(event.point),
        frame=event.frame,
        ride_id=track.ride_id,
        other_id=track.other(event.user_id),
        eta_minutes=eta_minutes(distance_km(event.point, goal)) if goal is not None else None,
    )
