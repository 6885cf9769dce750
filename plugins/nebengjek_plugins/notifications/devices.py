"""Devices that are pushed to: which there are, what they are told of, and the telling.

A phone with a socket has heard it already; only whoever has none is pushed to.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.match import MatchFound, MatchUnavailable
from nebengjek.contracts.rides import RideArrived, RideCancelled, RidePayment, RidePickup
from nebengjek.database import Database, insert_ignore
from nebengjek.errors import Invalid, NotFound, Unavailable
from nebengjek.realtime.presence import Presence
from nebengjek_plugins.notifications.contracts import PushKind, PushWanted
from nebengjek_plugins.notifications.push import Device, DeviceGone, Push, PushSender, unpadded
from nebengjek_plugins.notifications.tables import devices, notices
from nebengjek_plugins.notifications.templates import rendered, rupiah
from nebengjek_plugins.notifications.wishes import WishBook

log = structlog.stdlib.get_logger("nebengjek.notifications")

AT_MOST = 10
"""Devices of one user; one more and the oldest is forgotten."""
_SOON, _LATER = timedelta(minutes=10), timedelta(hours=1)
_TITLES: dict[str, PushKind] = {"REJECTED": "payment_refused", "OVERDUE": "payment_overdue"}


class KnownDevice(Struct, frozen=True, kw_only=True):
    """``service``: the host that pushes to it."""

    device_id: str
    kind: Literal["web", "fcm"]
    service: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """``cause``: there is one push of it for each user; ``data``: for the app."""

    cause: str
    kind: PushKind
    event: str
    about: str
    until: datetime
    values: dict[str, str] = field(default_factory=dict)
    urgent: bool = True


class Devices:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        clock: Clock,
        presence: Presence,
        book: WishBook,
        senders: dict[str, PushSender],
        hosts: Collection[str],
    ) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock
        self._presence = presence
        self._book = book
        self._senders = senders
        self._hosts = hosts

    # -- which there are

    async def keep_browser(self, user_id: str, address: str, p256dh: str, auth: str) -> KnownDevice:
        """Raises Invalid for an address of no push service that we know, or keys that are none."""
        if not self._is_service(address):
            raise Invalid("endpoint: no push service that is known here")
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unpadded(p256dh))
            secret = unpadded(auth)
        except ValueError:
            raise Invalid("keys: expected those of a push subscription") from None
        if len(secret) != 16:
            raise Invalid("keys.auth: expected 16 bytes in base64url")
        return await self._keep(user_id, "web", address, p256dh=p256dh, auth=auth)

    async def keep_app(self, user_id: str, token: str) -> KnownDevice:
        return await self._keep(user_id, "fcm", token)

    def _is_service(self, address: str) -> bool:
        try:
            parts = urlsplit(address)
        except ValueError:
            return False
        if f"{parts.scheme}://{parts.netloc}" in self._hosts:
            return True
        host = parts.hostname or ""
        # Nothing but the services' own port, and no credentials: it is we who call there.
        plain = parts.scheme == "https" and parts.netloc in (host, f"{host}:443")
        return plain and any(host == known or host.endswith(f".{known}") for known in self._hosts)

    async def _keep(self, user_id: str, kind: Literal["web", "fcm"], address: str, **keys: str) -> KnownDevice:
        device_id = hashlib.sha256(address.encode()).hexdigest()[:32]
        # A browser has one address: who logs in on it takes it over from who was there before.
        now = self._clock.now()
        values = {"user_id": user_id, "kind": kind, "address": address, "created_at": now, **keys}
        async with self._database.begin() as tx:
            if not await insert_ignore(tx, devices, {"device_id": device_id, **values}):
                await tx.execute(update(devices).where(devices.c.device_id == device_id).values(**values))
            mine = select(devices.c.device_id).where(devices.c.user_id == user_id)
            newest = mine.order_by(devices.c.created_at.desc(), devices.c.device_id).limit(AT_MOST)
            kept = (await tx.execute(newest)).scalars().all()
            await tx.execute(delete(devices).where(devices.c.user_id == user_id, devices.c.device_id.not_in(kept)))
        return _known(device_id, kind, address, now)

    async def of(self, user_id: str) -> list[KnownDevice]:
        """Newest first."""
        mine = select(devices).where(devices.c.user_id == user_id).order_by(devices.c.created_at.desc())
        async with self._database.read() as tx:
            return [_known(row.device_id, row.kind, row.address, row.created_at) for row in await tx.execute(mine)]

    async def remove(self, user_id: str, device_id: str) -> None:
        """Raises NotFound, also for a device of somebody else."""
        mine = (devices.c.device_id == device_id) & (devices.c.user_id == user_id)
        async with self._database.begin() as tx:
            if not (await tx.execute(delete(devices).where(mine))).rowcount:
                raise NotFound("you have no such device")

    async def forget(self, tx: AsyncConnection, user_id: str) -> None:
        await tx.execute(delete(devices).where(devices.c.user_id == user_id))

    # -- what they are told of

    async def found(self, event: MatchFound) -> None:
        match = event.match
        passenger = {"name": match.passenger.name, "distance": f"{match.distance_km:.1f}"}
        passenger["fare"] = rupiah(match.estimated_fare)
        driver = {"name": match.driver.name, "plate": match.driver.vehicle_plate, "minutes": str(match.eta_minutes)}

        def news(kind: PushKind, values: dict[str, str]) -> News:
            cause = f"push.match.found-{event.match_id}"
            return News(
                cause=cause,
                kind=kind,
                event="match.found",
                about=event.match_id,
                until=match.expires_at,
                values=values,
            )

        told = {match.driver_id: news("offer_to_driver", passenger)}
        await self._tell(told | {match.passenger_id: news("offer_to_passenger", driver)})

    async def unavailable(self, event: MatchUnavailable) -> None:
        if event.reason == "search_ended":
            cause = f"push.search.ended-{event.search_id}"
            await self._tell({event.passenger_id: self._news(cause, "search_ended", "match.unavailable", "", _SOON)})

    async def pickup(self, event: RidePickup) -> None:
        news = self._ride(event.ride_id, "driver_on_the_way", "ride.pickup", _SOON)
        await self._tell({event.passenger_id: news})

    async def arrived(self, event: RideArrived) -> None:
        if event.adjusted_cost:
            amount = {"amount": rupiah(event.adjusted_cost)}
            await self._tell(
                {event.passenger_id: self._ride(event.ride_id, "payment_due", "ride.arrived", _SOON, amount)}
            )

    async def payment(self, event: RidePayment) -> None:
        if (kind := _TITLES.get(event.status)) is not None:
            cause = f"push.{kind}-{event.ride_id}-{event.attempt}"
            amount = {"amount": rupiah(event.amount)}
            news = self._news(cause, kind, "ride.payment", event.ride_id, _LATER, amount)
            await self._tell({event.passenger_id: news})

    async def cancelled(self, event: RideCancelled) -> None:
        news = self._ride(event.ride_id, "ride_cancelled", "ride.cancelled", _LATER)
        await self._tell({event.passenger_id: news, event.driver_id: news})

    def _ride(
        self, ride_id: str, kind: PushKind, event: str, life: timedelta, values: dict[str, str] | None = None
    ) -> News:
        return self._news(f"push.{event}-{ride_id}", kind, event, ride_id, life, values)

    def _news(
        self, cause: str, kind: PushKind, event: str, about: str, life: timedelta, values: dict[str, str] | None = None
    ) -> News:
        return News(
            cause=cause, kind=kind, event=event, about=about, until=self._clock.now() + life, values=values or {}
        )

    async def _tell(self, told: dict[str, News]) -> None:
        """Write what is wanted, with its events, for those who have devices and no socket."""
        here = await self._connected(told)
        async with self._database.begin() as tx:
            wanted = select(devices).where(devices.c.user_id.in_([*told.keys() - here]))
            by_user: dict[str, list[str]] = {}
            for row in await tx.execute(wanted.order_by(devices.c.device_id)):
                by_user.setdefault(row.user_id, []).append(row.device_id)
            for user_id, device_ids in sorted(by_user.items()):
                await self._want(tx, user_id, device_ids, told[user_id])

    async def _connected(self, user_ids: Collection[str]) -> set[str]:
        try:
            return await self._presence.connected(user_ids)
        except Unavailable:
            # Who may have heard it hears it twice; the other way round nobody would.
            return set()

    async def _want(self, tx: AsyncConnection, user_id: str, device_ids: list[str], news: News) -> None:
        now = self._clock.now()
        wished = await self._book.among(tx, user_id)
        if not wished.push or news.until <= now:
            return
        if not await insert_ignore(tx, notices, {"user_id": user_id, "cause": news.cause, "created_at": now}):
            return
        for device_id in device_ids:
            push = PushWanted(
                user_id=user_id,
                push_id=f"{news.cause}-{device_id}",
                device_id=device_id,
                topic=hashlib.sha256(news.about.encode()).hexdigest()[:32],
                kind=news.kind,
                language=wished.language,
                values=news.values,
                data={"event": news.event, "id": news.about},
                expires_at=news.until,
                urgent=news.urgent,
            )
            await self._bus.outbox.add(tx, push)

    # -- the telling

    async def push(self, event: PushWanted) -> None:
        """Raises PushFailed, Reject."""
        left = (event.expires_at - self._clock.now()).total_seconds()
        mine = (devices.c.device_id == event.device_id) & (devices.c.user_id == event.user_id)
        async with self._database.read() as tx:
            row = (await tx.execute(select(devices).where(mine))).first()
        if row is None or left < 1:
            log.info("push.left_out", push_id=event.push_id, reason="too late" if row is not None else "no such device")
            return
        title, body = rendered(event.kind, event.language, event.values)
        news = Push(title=title, body=body, data=event.data, ttl=int(left), urgent=event.urgent, topic=event.topic)
        device = Device(address=row.address, p256dh=row.p256dh or "", auth=row.auth or "")
        try:
            await self._senders[row.kind].send(device, news)
        except DeviceGone:
            # Unless it was registered anew meanwhile, with other keys.
            same = mine & (devices.c.created_at == row.created_at)
            async with self._database.begin() as tx:
                await tx.execute(delete(devices).where(same))


def _known(device_id: str, kind: Literal["web", "fcm"], address: str, created_at: datetime) -> KnownDevice:
    service = urlsplit(address).hostname or "" if kind == "web" else "fcm"
    return KnownDevice(device_id=device_id, kind=kind, service=service, created_at=created_at)
