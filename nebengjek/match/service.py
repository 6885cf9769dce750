"""Searches find drivers, two acceptances make a match, deadlines are columns.

Dispatch looks at a search when something near it changed (finder, beacon, a free driver's point, an ended proposal
or ride) and at all unfilled ones every second. What is exclusive is decided by the database: a proposal is unique
per search and driver, a user is bound by at most one match.

Over 300 lines because searches, answers, rides and deadlines all change the same two rows.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.handling import Context, Retry
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.geo import DETOUR, Location, Place, distance_km, eta_minutes
from nebengjek.contracts.location import LatestLocations, LocationUpdate
from nebengjek.contracts.match import (
    AcceptMatch,
    Acquaintance,
    AcquaintanceOf,
    EndReason,
    Match,
    MatchAccepted,
    MatchesOf,
    MatchFound,
    MatchRejected,
    MatchStatus,
    MatchUnavailable,
    OngoingMatches,
    RejectMatch,
)
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.rides import RideCancelled, RideCompleted, RideOfMatch, RidePickup
from nebengjek.contracts.users import UserAvatarUploaded, UserBeacon, UserFinder, UserPresence
from nebengjek.database import Database
from nebengjek.errors import Conflict, Forbidden, NotFound, Unavailable
from nebengjek.match import store
from nebengjek.match.dispatch import Candidate, choose
from nebengjek.match.pool import Pool
from nebengjek.match.store import OPEN, match_of

RECONCILE_SECONDS = 10.0
LOOKS = 8
"""So many searches are looked at for one driver who appeared or moved; the sweep comes to the others."""
TURNS = 64
"""So many drivers are looked after by one handler of an event, before it is acknowledged."""
ENGAGED_LOOKS = 4
"""How often a finder of somebody engaged is looked at again (0.2, 0.4, 0.8, 1.6 s); below a consumer's five tries."""

log = structlog.stdlib.get_logger("nebengjek.match")


class MatchService:
    """``fare``: kilometres → rupiah, for the estimate; ``count``: told ``offered``, ``accepted``, ``rejected``."""

    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        pool: Pool,
        clock: Clock,
        fare: Callable[[float], int],
        count: Callable[[str], None],
        *,
        radius_km: float,
        max_candidates: int,
        offers_per_driver: int,
        offer_ttl: float,
        search_ttl: float,
        seen_ttl: float,
        open_within: float,
        open_check: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._pool = pool
        self._clock = clock
        self._fare = fare
        self._count = count
        self._radius_km = radius_km
        self._max_candidates = max_candidates
        self._offers_per_driver = offers_per_driver
        self._offer_ttl = timedelta(seconds=offer_ttl)
        self._search_ttl = timedelta(seconds=search_ttl)
        self._seen_ttl = timedelta(seconds=seen_ttl)
        self._open_within = timedelta(seconds=open_within)
        self._open_check = timedelta(seconds=open_check)
        self._looked: dict[str, set[str]] = {}
        self._appeared: dict[str, Place] = {}
        self._dispatching = False
        self._proposed: dict[str, set[str]] = {}
        self._reconciled_at: datetime | None = None

    # -- drivers come and go

    async def beacon(self, event: UserBeacon, context: Context) -> None:
        async with self._database.begin() as tx:
            row = await store.ensure_beacon(tx, event.user_id, self._clock.now())
            if row.version >= event.version:
                return
            values: dict[str, Any] = {"version": event.version, "is_active": event.is_active}
            values |= {"name": event.driver.name, "vehicle_type": event.driver.vehicle_type}
            values |= {"vehicle_plate": event.driver.vehicle_plate}
            values |= {"changed_at": self._clock.now()}
            # Of a picture that is newer than his card match has heard itself.
            if event.avatar_version >= row.avatar_version:
                values |= {"avatar_url": event.driver.avatar_url, "avatar_version": event.avatar_version}
            if event.location is not None:
                values |= {"latitude": event.location.latitude, "longitude": event.location.longitude}
            row = await store.change_beacon(tx, event.user_id, **values)
            if not event.is_active:
                await self._end_proposals(tx, "cancelled", driver_id=event.user_id)
        await self._place(row, event.location)

    async def presence(self, event: UserPresence, context: Context) -> None:
        async with self._database.begin() as tx:
            row = await store.ensure_beacon(tx, event.user_id, self._clock.now())
            if row.presence_version >= event.version:
                return
            values = {"presence_version": event.version, "online": event.online, "changed_at": self._clock.now()}
            row = await store.change_beacon(tx, event.user_id, **values)
        await self._place(row, None)

    async def avatar(self, event: UserAvatarUploaded) -> None:
        """Show the picture in the next proposal, unless a newer one has been heard of."""
        async with self._database.begin() as tx:
            row = await store.ensure_beacon(tx, event.user_id, self._clock.now())
            if row.avatar_version < event.version:
                shown = {"avatar_url": event.avatar_url, "avatar_version": event.version}
                await store.change_beacon(tx, event.user_id, **shown)

    async def _place(self, row: Row[Any], location: Location | None) -> None:
        """Put the driver into the pool, or take him out, as his row says."""
        if not (row.is_active and row.online):
            await self._pool.leave(row.driver_id)
        elif location is not None:
            await self._join([row.driver_id], {row.driver_id: location})
        else:
            await self._rejoin([row.driver_id])

    async def _rejoin(self, driver_ids: list[str]) -> None:
        """Put drivers back whose place is not said: location knows it; else where the beacon was switched on."""
        known: dict[str, Location] = {}
        try:
            latest = await self._bus.request(LatestLocations(user_ids=driver_ids), timeout=1.0)
        except Unavailable:
            log.info("pool.without_latest", drivers=len(driver_ids))
        else:
            for user_id, point in latest.points.items():
                known[user_id] = Location(latitude=point.latitude, longitude=point.longitude)
        await self._join(driver_ids, known)

    async def _join(self, driver_ids: list[str], known: dict[str, Location]) -> None:
        async with self._database.read() as tx:
            rows = await store.available(tx, driver_ids)
        for row in rows:
            location = known.get(row.driver_id)
            if location is None and row.latitude is not None:
                location = Location(latitude=row.latitude, longitude=row.longitude)
            if location is not None:
                await self._pool.join(row.driver_id, location, row.vehicle_type, self._clock.now())
                await self._dispatch_near([(row.driver_id, location)])

    async def points(self, events: Sequence[LocationUpdate]) -> None:
        """Free drivers move; searches that they come near look at them once a second at most."""
        moved = set(await self._pool.move([(event.user_id, event.point, event.received_at) for event in events]))
        if moved:
            await self._dispatch_near([(event.user_id, event.point) for event in events if event.user_id in moved])

    async def _dispatch_near(self, drivers: Iterable[tuple[str, Place]]) -> None:
        """Propose drivers who appeared or moved to the searches around them.

        One handler at a time does it for all: the others leave their drivers to him and go on, or a rush of drivers
        would hold up their own beacons. He stops after ``TURNS`` drivers; the sweep comes to what is left.
        """
        self._appeared.update(drivers)
        if self._dispatching:
            return
        self._dispatching = True
        try:
            for _ in range(TURNS):
                if not self._appeared:
                    break
                driver_id = next(iter(self._appeared))
                await self._offer(driver_id, self._appeared.pop(driver_id))
        finally:
            self._dispatching = False

    async def _offer(self, driver_id: str, place: Place) -> None:
        """Look at the searches around a driver, nearest first, until he has enough proposals."""
        near = []
        for search_id in await self._pool.searches_near(place, self._radius_km):
            looked = self._looked.setdefault(search_id, set())
            if driver_id not in looked:
                looked.add(driver_id)
                near.append(search_id)
        if not near:
            return
        async with self._database.read() as tx:
            waiting = {row.search_id: row for row in await store.unfilled_searches(tx, self._max_candidates, near)}
        offers = 0
        for search_id in [search_id for search_id in near if search_id in waiting][:LOOKS]:
            offers += driver_id in await self._propose(waiting[search_id])
            if offers >= self._offers_per_driver:
                break

    # -- searches

    async def finder(self, event: UserFinder, context: Context) -> None:
        now = self._clock.now()
        async with self._database.begin() as tx:
            if not await store.finder_is_new(tx, event.user_id, event.version):
                return
            current = over = await store.open_search_of(tx, event.user_id)
            if current is not None and (not event.is_active or event.began > current.finder_version):
                # Switched off, also if the word of that comes later than what he seeks now, or never.
                await store.close_search(tx, current.search_id, "ENDED")
                await self._end_proposals(tx, "cancelled", search_id=current.search_id)
                current = None
            if not event.is_active:
                search_id = None
            elif await store.engaged_among(tx, [event.user_id]):
                # users let it pass, so the end of the ride is on its way to us too and this event overtook it. Who is
                # still engaged after some seconds got engaged meanwhile: he is not matched, whatever arrives.
                if context.deliveries <= ENGAGED_LOOKS:
                    raise Retry(after=0.2 * 2 ** (context.deliveries - 1))
                await self._bus.outbox.add(tx, _not_searching(event))
                return
            else:
                search_id = await self._search(tx, event, current, now)
        if over is not None and over.search_id != search_id:
            await self._pool.close_search(over.search_id)
        if search_id is not None and event.location is not None:
            await self._pool.open_search(search_id, event.location)
            await self._dispatch(search_id)

    async def _search(self, tx: AsyncConnection, event: UserFinder, current: Row[Any] | None, now: datetime) -> str:
        assert event.location is not None
        assert event.target_location is not None
        values = {
            "finder_version": event.version,
            "passenger_name": event.passenger.name,
            "latitude": event.location.latitude,
            "longitude": event.location.longitude,
            "target_latitude": event.target_location.latitude,
            "target_longitude": event.target_location.longitude,
            "vehicle_type": event.vehicle_type,
            "told": False,
            "expires_at": now + self._search_ttl,
        }
        if current is not None:
            await store.change_search(tx, current.search_id, **values)
            return str(current.search_id)
        search_id = uuid7()
        values |= {"search_id": search_id, "passenger_id": event.user_id, "status": "OPEN", "created_at": now}
        await store.insert_search(tx, **values)
        return search_id

    async def _dispatch(self, search_id: str) -> None:
        async with self._database.read() as tx:
            row = await store.search(tx, search_id)
        if row is None:
            await self._pool.close_search(search_id)
            return
        await self._propose(row)

    async def _propose(self, search: Row[Any]) -> set[str]:
        """Propose the search to whom ``choose`` names, and return them; say so when nobody is near, once.

        Most searches that wait have nobody new near: they are looked at without writing, most without reading.
        """
        near = await self._near(search)
        if not near and search.told:
            return set()
        async with self._database.read() as tx:
            chosen, still_open = await self._choose(tx, search, near)
        if not chosen and (still_open or search.told):
            return set()
        async with self._database.begin() as tx:
            current = await store.search(tx, search.search_id, lock=True)
            if current is None:
                return set()
            chosen, still_open = await self._choose(tx, current, near)
            cards = {row.driver_id: row for row in await store.available(tx, [one.driver_id for one in chosen])}
            for candidate in chosen:
                if candidate.driver_id in cards:
                    await self._insert(tx, current, candidate, cards[candidate.driver_id])
            if not chosen and not still_open and not current.told:
                await self._tell_nobody(tx, current)
        return cards.keys() & {candidate.driver_id for candidate in chosen}

    async def _near(self, search: Row[Any]) -> list[Candidate]:
        """Free drivers near the search who, as far as this pod knows, have not been proposed to it yet."""
        return await self._pool.nearest(
            Location(latitude=search.latitude, longitude=search.longitude),
            self._radius_km,
            self._max_candidates * 4,
            vehicle_type=search.vehicle_type,
            seen_after=self._clock.now() - self._seen_ttl,
            exclude=self._proposed.get(search.search_id, ()),
        )

    async def _choose(
        self, tx: AsyncConnection, search: Row[Any], near: list[Candidate]
    ) -> tuple[list[Candidate], int]:
        """Whom to propose now, and how many proposals are open already."""
        proposals = await store.of_search(tx, search.search_id)
        proposed = self._proposed[search.search_id] = {proposal.driver_id for proposal in proposals}
        still_open = sum(1 for proposal in proposals if proposal.status in OPEN)
        ids = [candidate.driver_id for candidate in near]
        chosen = choose(
            near,
            passenger_id=search.passenger_id,
            proposed=proposed,
            engaged=await store.engaged_among(tx, ids) if ids else set(),
            offers=await store.offers(tx, ids) if ids else {},
            open_proposals=still_open,
            max_candidates=self._max_candidates,
            offers_per_driver=self._offers_per_driver,
        )
        return chosen, still_open

    async def _insert(self, tx: AsyncConnection, search: Row[Any], candidate: Candidate, driver: Row[Any]) -> None:
        now = self._clock.now()
        start = Location(latitude=search.latitude, longitude=search.longitude)
        target = Location(latitude=search.target_latitude, longitude=search.target_longitude)
        values = {
            "match_id": uuid7(),
            "search_id": search.search_id,
            "passenger_id": search.passenger_id,
            "driver_id": candidate.driver_id,
            "status": "PENDING",
            "version": 1,
            "latitude": start.latitude,
            "longitude": start.longitude,
            "driver_latitude": candidate.location.latitude,
            "driver_longitude": candidate.location.longitude,
            "target_latitude": target.latitude,
            "target_longitude": target.longitude,
            "distance_km": round(candidate.distance_km, 3),
            "eta_minutes": eta_minutes(candidate.distance_km),
            "estimated_fare": self._fare(distance_km(start, target) * DETOUR),
            "driver_name": driver.name or "",
            "vehicle_type": driver.vehicle_type,
            "vehicle_plate": driver.vehicle_plate,
            "driver_avatar_url": driver.avatar_url,
            "passenger_name": search.passenger_name,
            "created_at": now,
            "expires_at": now + self._offer_ttl,
        }
        if await store.insert_match(tx, **values):
            row = await store.match_row(tx, str(values["match_id"]))
            assert row is not None
            await self._bus.outbox.add(tx, MatchFound(match_id=row.match_id, version=1, match=match_of(row)))
            self._count("offered")

    async def _tell_nobody(self, tx: AsyncConnection, search: Row[Any]) -> None:
        await store.change_search(tx, search.search_id, told=True)
        await self._bus.outbox.add(tx, _unavailable(search, "no_drivers"))

    # -- answers of the two

    async def accept(self, query: AcceptMatch) -> MatchStatus:
        """Accept for one side; the second acceptance makes the match.

        Raises NotFound, Forbidden (no party), Conflict (it has ended, expired, or one of the two is bound elsewhere).
        """
        while True:
            async with self._database.begin() as tx:
                row = await self._party(tx, query.match_id, query.user_id)
                mine = "DRIVER_CONFIRMED" if query.user_id == row.driver_id else "PASSENGER_CONFIRMED"
                if row.status in (mine, "ACCEPTED", "CLOSED"):
                    return MatchStatus(match_id=row.match_id, match_status=row.status)
                if row.status not in OPEN:
                    raise Conflict(f"the proposal has ended: {row.reason or row.status.lower()}")
                if row.expires_at <= self._clock.now():
                    raise Conflict("the proposal has expired")
                if row.status == "PENDING":
                    moved = await self._confirm(tx, row, mine)
                    if moved is None:
                        continue
                    return MatchStatus(match_id=row.match_id, match_status=moved.status)
                outcome = await self._accept_both(tx, row)
            if outcome is None:
                continue
            if outcome.status != "ACCEPTED":
                raise Conflict("one of the two has been taken by another match")
            self._count("accepted")
            await self._pool.leave(outcome.driver_id)
            await self._pool.close_search(outcome.search_id)
            return MatchStatus(match_id=outcome.match_id, match_status="ACCEPTED")

    async def _confirm(self, tx: AsyncConnection, row: Row[Any], mine: str) -> Row[Any] | None:
        if await store.engaged_among(tx, [row.driver_id, row.passenger_id]):
            raise Conflict("one of the two has been taken by another match")
        moved = await store.move(tx, row.match_id, mine, when=("PENDING",))
        if moved is not None:
            event = MatchFound(match_id=moved.match_id, version=moved.version, match=match_of(moved))
            await self._bus.outbox.add(tx, event)
        return moved

    async def _accept_both(self, tx: AsyncConnection, row: Row[Any]) -> Row[Any] | None:
        """The second acceptance: bind both or end as taken. None: the row changed meanwhile, look again."""
        open_before = self._clock.now() + self._open_within
        async with tx.begin_nested() as savepoint:
            bound = await store.engage(tx, row.match_id, (row.driver_id, row.passenger_id))
            check_at = open_before + self._open_check
            moved = await store.move(tx, row.match_id, "ACCEPTED", when=(row.status,), check_at=check_at)
            if not bound or moved is None:
                await savepoint.rollback()
        if not bound:
            taken = await store.move(tx, row.match_id, "REJECTED", when=OPEN, reason="taken")
            if taken is not None:
                await self._bus.outbox.add(tx, _rejected(taken))
            return taken
        if moved is None:
            return None
        await store.close_search(tx, row.search_id, "MATCHED")
        await self._end_proposals(tx, "taken", search_id=row.search_id, driver_id=row.driver_id)
        event = MatchAccepted(
            match_id=moved.match_id, version=moved.version, match=match_of(moved), open_before=open_before
        )
        await self._bus.outbox.add(tx, event)
        return moved

    async def reject(self, query: RejectMatch) -> MatchStatus:
        """End a proposal. Raises NotFound, Forbidden, Conflict (it was accepted by both: cancel the ride)."""
        async with self._database.begin() as tx:
            row = await self._party(tx, query.match_id, query.user_id)
            if row.status in ("ACCEPTED", "CLOSED"):
                raise Conflict("both have accepted; the ride can be cancelled")
            moved = await store.move(tx, row.match_id, "REJECTED", when=OPEN, reason="rejected")
            if moved is None:
                fresh = await store.match_row(tx, row.match_id)
                assert fresh is not None
                return MatchStatus(match_id=row.match_id, match_status=fresh.status)
            await self._bus.outbox.add(tx, _rejected(moved))
        self._count("rejected")
        await self._dispatch(moved.search_id)
        return MatchStatus(match_id=moved.match_id, match_status=moved.status)

    async def _party(self, tx: AsyncConnection, match_id: str, user_id: str) -> Row[Any]:
        row = await store.match_row(tx, match_id)
        if row is None:
            raise NotFound("there is no such match")
        if user_id not in (row.driver_id, row.passenger_id):
            raise Forbidden("only its two parties can answer a proposal")
        return row

    async def _end_proposals(self, tx: AsyncConnection, reason: EndReason, **of: str | datetime) -> None:
        """``of``: whose, as ``store.end_open`` takes it."""
        status = "EXPIRED" if reason == "expired" else "REJECTED"
        ended = await store.end_open(tx, status=status, reason=reason, **of)
        await self._bus.outbox.add(tx, *(_rejected(row) for row in ended))
        for _ in ended:
            self._count("rejected")

    # -- rides begin and end

    async def pickup(self, event: RidePickup, context: Context) -> None:
        """The ride is open: the lock is right, or made right again."""
        async with self._database.begin() as tx:
            # Locked, or an end that is heard at the same moment would release the two before they are bound again.
            row = await store.match_row(tx, event.match_id, lock=True)
            if row is None:
                raise NotFound("the match of this ride is not known yet")
            if row.status != "ACCEPTED":
                return
            await store.check_match(tx, event.match_id, None)
            await store.engage(tx, event.match_id, (event.driver_id, event.passenger_id))
        await self._pool.leave(event.driver_id)

    async def ended(self, event: RideCompleted | RideCancelled, context: Context) -> None:
        """The ride is over: both are free; the driver is where his phone says, with his beacon as he left it."""
        async with self._database.begin() as tx:
            row = await store.match_row(tx, event.match_id)
            if row is None:
                raise NotFound("the match of this ride is not known yet")
            await store.move(tx, event.match_id, "CLOSED", when=("ACCEPTED",), check_at=None)
            await store.release(tx, event.match_id)
        await self._rejoin([event.driver_id])

    # -- deadlines

    async def sweep(self) -> None:
        """What is due, then every unfilled search, then the pool against the facts."""
        now = self._clock.now()
        await self._expire(now)
        await self._check_unopened(now)
        await self._reconcile(now)
        self._looked.clear()
        self._appeared.clear()
        async with self._database.read() as tx:
            waiting = await store.unfilled_searches(tx, self._max_candidates)
        still = {row.search_id for row in waiting}
        self._proposed = {search_id: known for search_id, known in self._proposed.items() if search_id in still}
        for row in waiting:
            await self._propose(row)

    async def _expire(self, now: datetime) -> None:
        async with self._database.begin() as tx:
            await self._end_proposals(tx, "expired", expired_at=now)
            for search in await store.expired_searches(tx, now):
                await self._end_proposals(tx, "cancelled", search_id=search.search_id)
                await self._bus.outbox.add(tx, _unavailable(search, "search_ended"))
                await self._pool.close_search(search.search_id)

    async def _check_unopened(self, now: datetime) -> None:
        async with self._database.read() as tx:
            due = await store.due_for_check(tx, now)
        for row in due:
            try:
                known = await self._bus.request(RideOfMatch(match_id=row.match_id))
            except Unavailable:
                continue
            await (self._fail(row) if known.ride is None else self._confirm_ride(row))

    async def _fail(self, row: Row[Any]) -> None:
        async with self._database.begin() as tx:
            failed = await store.move(tx, row.match_id, "FAILED", when=("ACCEPTED",), reason="failed", check_at=None)
            if failed is None:
                return
            await store.release(tx, row.match_id)
            await self._bus.outbox.add(tx, _rejected(failed))
        await self._rejoin([row.driver_id])

    async def _confirm_ride(self, row: Row[Any]) -> None:
        async with self._database.begin() as tx:
            await store.check_match(tx, row.match_id, None)

    async def _reconcile(self, now: datetime) -> None:
        """After a restart, or when the fast store forgot: the pool holds who belongs there, and nobody else."""
        recent = self._reconciled_at is not None and (now - self._reconciled_at).total_seconds() < RECONCILE_SECONDS
        blank = await self._pool.is_blank()
        if recent and not blank:
            return
        self._reconciled_at = now
        await self._pool.forget(now - self._seen_ttl)
        present = set(await self._pool.drivers())
        async with self._database.read() as tx:
            belongs = {row.driver_id for row in await store.available(tx)}
            waiting = await store.unfilled_searches(tx, self._max_candidates)
        for row in waiting:
            await self._pool.open_search(row.search_id, Location(latitude=row.latitude, longitude=row.longitude))
        for driver_id in present - belongs:
            await self._pool.leave(driver_id)
        if lost := sorted(belongs - present):
            await self._rejoin(lost)
        if blank:
            await self._pool.mark()

    # -- questions

    async def of_user(self, query: MatchesOf) -> OngoingMatches:
        async with self._database.read() as tx:
            rows = await store.of_user(tx, query.user_id, (*OPEN, "ACCEPTED"))
        proposals = [match_of(row) for row in rows if row.status in OPEN]
        accepted = next((match_of(row) for row in rows if row.status == "ACCEPTED"), None)
        return OngoingMatches(proposals=proposals, match=accepted)

    async def acquaintance(self, query: AcquaintanceOf) -> Acquaintance:
        async with self._database.read() as tx:
            rows = await store.of_user(tx, query.user_id, None, limit=1000)
        shared = [row for row in rows if query.other_id in (row.driver_id, row.passenger_id)]
        return Acquaintance(shared=bool(shared), phone=any(row.status == "ACCEPTED" for row in shared))

    async def matches_of(self, user_id: str, status: str | None) -> list[Match]:
        """The user's matches, newest first."""
        async with self._database.read() as tx:
            rows = await store.of_user(tx, user_id, (status,) if status else None)
        return [match_of(row) for row in rows]

    async def match(self, user_id: str, match_id: str) -> Match:
        """Raises NotFound: there is none, or it is somebody else's."""
        async with self._database.read() as tx:
            row = await store.match_row(tx, match_id)
        if row is None or user_id not in (row.driver_id, row.passenger_id):
            raise NotFound("there is no such match")
        return match_of(row)


def _rejected(row: Row[Any]) -> MatchRejected:
    return MatchRejected(match_id=row.match_id, version=row.version, match=match_of(row))


def _not_searching(event: UserFinder) -> MatchUnavailable:
    return MatchUnavailable(
        passenger_id=event.user_id, search_id=uuid7(), finder_version=event.version, reason="engaged"
    )


def _unavailable(search: Row[Any], reason: Any) -> MatchUnavailable:
    return MatchUnavailable(
        passenger_id=search.passenger_id,
        search_id=search.search_id,
        finder_version=search.finder_version,
        reason=reason,
    )
