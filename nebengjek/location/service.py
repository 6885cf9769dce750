"""Points are judged, remembered and confirmed; everybody's latest can be asked for."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import Location, Point, distance_km, eta_minutes, geohash
from nebengjek.contracts.location import (
    LatestLocations,
    LatestPoints,
    LocationRefused,
    LocationStored,
    LocationUpdate,
)
from nebengjek.database import Database
from nebengjek.location import records
from nebengjek.location.journeys import Journeys
from nebengjek.location.judge import AGREEING, UserState, Verdict, judge
from nebengjek.location.store import Points, Track


class LocationService:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        points: Points,
        journeys: Journeys,
        clock: Clock,
        *,
        max_clock_skew: float,
        max_speed_kmh: float,
        ttl: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._points = points
        self._journeys = journeys
        self._clock = clock
        self._skew = timedelta(seconds=max_clock_skew)
        self._max_speed_kmh = max_speed_kmh
        self._ttl = ttl

    # -- points

    async def update(self, events: Sequence[LocationUpdate]) -> None:
        """Judge a batch; confirm what is accepted once it is remembered, say why of what is not."""
        users = {event.user_id for event in events}
        states = await self._points.load(users)
        tracks = await self._points.tracks(users)
        limit = self._clock.now() + self._skew
        max_speed = self._max_speed_kmh
        verdicts: list[Verdict | Literal["future"]] = []
        changed: dict[str, UserState] = {}
        suspects: list[str] = []
        for event in events:
            point, user_id = event.point, event.user_id
            if point.timestamp > limit:
                verdicts.append("future")
                continue
            state = states.get(user_id)
            if state is None:
                states[user_id] = changed[user_id] = UserState(point=point)
                verdicts.append("fresh")
                continue
            teleports = state.teleports
            verdict = judge(state, point, max_speed)
            verdicts.append(verdict)
            if verdict != "late":
                changed[user_id] = state
            if state.teleports != teleports and state.teleports % AGREEING == 0:
                suspects.append(user_id)
        if changed:
            await self._points.save(changed, self._ttl)
        if suspects:
            await self._flag(suspects)
        near: dict[str, UserState] = {}
        if tracks:
            accepted = [event for event, verdict in zip(events, verdicts, strict=True) if verdict in ("fresh", "late")]
            await self._journeys.follow(accepted, tracks)
            near = await self._points.load({track.other(user_id) for user_id, track in tracks.items()})
        publish_soon = self._bus.publish_soon
        for event, said in zip(events, verdicts, strict=True):
            track = tracks.get(event.user_id)
            answer: LocationStored | LocationRefused
            if said in ("future", "teleport"):
                answer = self._refused(event, said)
            elif track is None or said == "late":
                # The other party sees where somebody is, not where he was.
                answer = _stored(event)
            else:
                answer = _tracked(event, track, near)
            await publish_soon(answer, because=event)

    def _refused(self, event: LocationUpdate, verdict: str) -> LocationRefused:
        if verdict == "future":
            message = f"the phone's clock is more than {self._skew.total_seconds():.0f} s ahead"
        else:
            message = f"faster than {self._max_speed_kmh:.0f} km/h from the last point"
        return LocationRefused(user_id=event.user_id, reason=verdict, message=message, frame=event.frame)

    async def _flag(self, user_ids: Sequence[str]) -> None:
        async with self._database.begin() as tx:
            for user_id in user_ids:
                await records.flag(tx, user_id, "teleport", AGREEING, self._clock.now())

    async def latest(self, query: LatestLocations) -> LatestPoints:
        states = await self._points.load(query.user_ids)
        return LatestPoints(points={user_id: state.point for user_id, state in states.items()})


def _stored(event: LocationUpdate) -> LocationStored:
    point = event.point
    return LocationStored(
        user_id=event.user_id,
        location=Location(latitude=point.latitude, longitude=point.longitude),
        geohash=geohash(point),
        frame=event.frame,
    )


def _tracked(event: LocationUpdate, track: Track, near: dict[str, UserState]) -> LocationStored:
    """During the pick-up the way is to the other party, or to where he asked to be picked up; then to the target."""
    point = event.point
    goal: Location | Point | None = track.target
    if track.start is None:
        other = near.get(track.other(event.user_id))
        goal = other.point if other is not None else track.pickup
    return LocationStored(
        user_id=event.user_id,
        location=Location(latitude=point.latitude, longitude=point.longitude),
        geohash=geohash(point),
        frame=event.frame,
        ride_id=track.ride_id,
        other_id=track.other(event.user_id),
        eta_minutes=eta_minutes(distance_km(point, goal)) if goal is not None else None,
    )
