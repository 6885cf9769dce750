"""Accounts: login by one-time code, sessions, the own profile, becoming a driver.

A little over 300 lines: an account is login, session, profile and end.
"""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Any

import structlog
from msgspec import Struct
from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.match import AcquaintanceOf
from nebengjek.contracts.message import Event, uuid7
from nebengjek.contracts.users import (
    Account,
    AccountList,
    AccountsAfter,
    AccountsOf,
    DriverCard,
    PassengerCard,
    Role,
    UserAvatarUploaded,
    UserBeacon,
    UserCreated,
    UserDriverRegistered,
    UserFinder,
    UserSessionEnded,
    UserUpdated,
    Vehicle,
    VehicleType,
)
from nebengjek.database import Database, insert_ignore
from nebengjek.errors import Conflict, Forbidden, NotFound, Unauthenticated, Unavailable
from nebengjek.faststate import FastState
from nebengjek.tokens import Identity, Tokens
from nebengjek.users import store
from nebengjek.users.numbers import parse_plate
from nebengjek.users.store import drivers, refresh_tokens, users

log = structlog.stdlib.get_logger("nebengjek.users")

SUFFIX = 6
"""Digits of a number that others may know, to find its owner by."""
KNOWN = "sessions:known"
"""Where the fast state has it that it knows which sessions have ended."""
PAGE = 1_000
"""Accounts in an answer, at most."""


class Login(Struct, frozen=True, kw_only=True):
    """``expires_at``: unix seconds."""

    token: str
    refresh_token: str
    user_id: str
    role: Role
    expires_at: int


class User(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A person as he reads himself; the other party of a match reads less (null)."""

    id: str
    msisdn: str | None
    full_name: str | None
    email: str | None
    role: Role
    created_at: datetime
    updated_at: datetime
    vehicle: Vehicle | None = None
    avatar_url: str | None = None


class DriverRegistration(Struct, frozen=True, kw_only=True):
    """``token``: a fresh one, of role driver."""

    token: str
    user_id: str
    role: Role
    expires_at: int
    full_name: str
    vehicle: Vehicle


class Accounts:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        state: FastState,
        tokens: Tokens,
        clock: Clock,
        *,
        refresh_days: float,
        token_hours: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._state = state
        self._tokens = tokens
        self._clock = clock
        self._refresh = timedelta(days=refresh_days)
        self._token_seconds = token_hours * 3600

    async def login(self, msisdn: str) -> Login:
        """The number has been proved: find its user or create a passenger, begin a session."""
        async with self._database.begin() as tx:
            user = await store.by_msisdn(tx, msisdn) or await self._create(tx, msisdn)
            return await self._session(tx, user.id, user.role, uuid7())

    async def _create(self, tx: AsyncConnection, msisdn: str) -> Row[Any]:
        now = self._clock.now()
        user_id = uuid7()
        row = {
            "id": user_id,
            "msisdn": msisdn,
            "role": "passenger",
            "version": 1,
            "online": False,
            "beacon_active": False,
            "finder_active": False,
            "finder_version": 0,
            "avatar_version": 0,
            "created_at": now,
            "updated_at": now,
        }
        if await insert_ignore(tx, users, row):
            created = UserCreated(
                user_id=user_id, version=1, role="passenger", created_at=now, msisdn_suffix=msisdn[-SUFFIX:]
            )
            await self._bus.outbox.add(tx, created)
        user = await store.by_msisdn(tx, msisdn)
        assert user is not None
        return user

    async def _session(self, tx: AsyncConnection, user_id: str, role: Role, session_id: str) -> Login:
        refresh = secrets.token_urlsafe(32)
        await tx.execute(
            insert(refresh_tokens).values(
                hash=_hash(refresh),
                user_id=user_id,
                session_id=session_id,
                expires_at=self._clock.now() + self._refresh,
            )
        )
        token, identity = self._tokens.issue(user_id, role, session_id)
        expires_at = int(identity.expires_at.timestamp())
        return Login(token=token, refresh_token=refresh, user_id=user_id, role=role, expires_at=expires_at)

    async def refresh(self, refresh_token: str) -> Login:
        """A new pair; the old refresh token is used up. Used twice, the session ends: one of the two is a thief."""
        now = self._clock.now()
        async with self._database.begin() as tx:
            known = await self._known(tx, refresh_token, now)
            if known.used_at is None:
                taken = await tx.execute(
                    update(refresh_tokens)
                    .where(refresh_tokens.c.hash == known.hash, refresh_tokens.c.used_at.is_(None))
                    .values(used_at=now)
                )
                user = await store.by_id(tx, known.user_id)
                if taken.rowcount == 1 and user is not None:
                    return await self._session(tx, user.id, user.role, known.session_id)
        await self.end_session(known.user_id, known.session_id)
        raise Unauthenticated("the refresh token has been used already; log in again")

    async def logout(self, refresh_token: str) -> None:
        """End the session: tokens worth nothing any more, sockets closed. An unknown token is ignored."""
        async with self._database.read() as tx:
            statement = select(refresh_tokens).where(refresh_tokens.c.hash == _hash(refresh_token))
            known = (await tx.execute(statement)).first()
        if known is not None:
            await self.end_session(known.user_id, known.session_id)

    async def end_session(self, user_id: str, session_id: str) -> None:
        """Revoke one login everywhere."""
        async with self._database.begin() as tx:
            await self._revoke(tx, user_id, session_id)

    async def _revoke(self, tx: AsyncConnection, user_id: str, session_id: str) -> None:
        await tx.execute(
            update(refresh_tokens)
            .where(refresh_tokens.c.session_id == session_id, refresh_tokens.c.used_at.is_(None))
            .values(used_at=self._clock.now())
        )
        await self._bus.outbox.add(tx, UserSessionEnded(user_id=user_id, session_id=session_id))
        # Before the commit: while the fast state is away nothing is revoked, and the same request may pass later.
        await self._end(session_id)

    async def _known(self, tx: AsyncConnection, refresh_token: str, now: datetime) -> Row[Any]:
        statement = select(refresh_tokens).where(refresh_tokens.c.hash == _hash(refresh_token))
        known = (await tx.execute(statement)).first()
        if known is None or known.expires_at <= now:
            raise Unauthenticated("the refresh token is not known or has expired")
        if await self._state.get(_ended(known.session_id)) is not None:
            raise Unauthenticated("the session has ended")
        return known

    async def me(self, user_id: str) -> User:
        """Raises NotFound when the account is gone."""
        async with self._database.read() as tx:
            return _user(await self._row(tx, user_id))

    async def other(self, user_id: str, other_id: str) -> User:
        """The other party of a match or ride; the number only while an accepted one is open. Raises Forbidden."""
        if user_id == other_id:
            return await self.me(user_id)
        known = await self._bus.request(AcquaintanceOf(user_id=user_id, other_id=other_id))
        if not known.shared:
            raise Forbidden("only the other party of a match or ride can be read")
        async with self._database.read() as tx:
            row = await self._row(tx, other_id)
        shown = _user(row)
        return User(
            id=shown.id,
            msisdn=shown.msisdn if known.phone else None,
            full_name=shown.full_name,
            email=None,
            role=shown.role,
            created_at=shown.created_at,
            updated_at=shown.updated_at,
            vehicle=shown.vehicle,
            avatar_url=shown.avatar_url,
        )

    async def update(self, user_id: str, changes: dict[str, str | None]) -> User:
        """Change ``full_name`` and ``email``; None clears."""
        async with self._database.begin() as tx:
            before = await self._row(tx, user_id)
            if changes:
                version = await store.change(tx, user_id, self._clock.now(), **changes)
                row = await self._row(tx, user_id)
                changed = tuple(name for name in changes if getattr(before, name) != getattr(row, name))
                await self._bus.outbox.add(tx, _updated(row, version or row.version, changed))
            return _user(await self._row(tx, user_id))

    async def delete(self, user_id: str) -> None:
        """Anonymise the account, switch beacon and finder off and end its sessions, all in one step.

        Raises Conflict while a match or a debt binds it.
        """
        async with self._database.begin() as tx:
            row = await self._row(tx, user_id)
            if await store.engaged_in(tx, user_id):
                raise Conflict("the account is bound by a match or ride")
            if await store.owes(tx, user_id):
                raise Conflict("a ride is not paid yet", code="PAYMENT_DUE")
            now = self._clock.now()
            version = await store.change(
                tx,
                user_id,
                now,
                msisdn=None,
                full_name=None,
                email=None,
                avatar_url=None,
                beacon_active=False,
                finder_active=False,
                finder=None,
                deleted_at=now,
            )
            await tx.execute(
                update(drivers).where(drivers.c.user_id == user_id).values(vehicle_plate=f"~{user_id[-11:]}")
            )
            await self._bus.outbox.add(tx, *_farewell(row, version or row.version + 1))
            mine = (refresh_tokens.c.user_id == user_id) & refresh_tokens.c.used_at.is_(None)
            for session_id in (await tx.execute(select(refresh_tokens.c.session_id).where(mine))).scalars().all():
                await self._revoke(tx, user_id, session_id)

    async def register_driver(
        self, identity: Identity, full_name: str, vehicle_type: VehicleType, vehicle_plate: str
    ) -> DriverRegistration:
        """A passenger becomes a driver. Raises Conflict (DRIVER_EXISTS), Invalid (plate)."""
        plate = parse_plate(vehicle_plate)
        now = self._clock.now()
        try:
            async with self._database.begin() as tx:
                row = await self._row(tx, identity.user_id)
                if row.role == "driver":
                    raise Conflict("you are a driver already", code="DRIVER_EXISTS")
                values = {"user_id": row.id, "vehicle_type": vehicle_type, "vehicle_plate": plate, "created_at": now}
                await tx.execute(insert(drivers).values(values))
                version = await store.change(tx, row.id, now, role="driver", full_name=full_name)
                # Changed by now, it is ours until the commit: nobody gives him another address in between.
                row = await self._row(tx, row.id)
                vehicle = Vehicle(vehicle_type=vehicle_type, vehicle_plate=plate)
                registered = UserDriverRegistered(
                    user_id=row.id, version=version or 0, full_name=full_name, email=row.email, vehicle=vehicle
                )
                await self._bus.outbox.add(tx, registered)
        except IntegrityError as error:
            raise Conflict("this vehicle has a driver already", code="DRIVER_EXISTS") from error
        token, fresh = self._tokens.issue(identity.user_id, "driver", identity.session_id)
        return DriverRegistration(
            token=token,
            user_id=identity.user_id,
            role="driver",
            expires_at=int(fresh.expires_at.timestamp()),
            full_name=full_name,
            vehicle=vehicle,
        )

    async def restore(self) -> None:
        """Know again which sessions have ended: what knew it may have been lost, with the process or with Redis's data.

        Costs a look where nothing was lost. With the fast state away nothing happens: call again.
        """
        try:
            if await self._state.get(KNOWN) is None:
                await self._restore()
                await self._state.put(KNOWN, b"1", self._token_seconds)
        except Unavailable as error:
            log.warning("sessions.not_restored", error=str(error))

    async def _restore(self) -> None:
        since = self._clock.now() - timedelta(seconds=self._token_seconds)
        unused = func.count().filter(refresh_tokens.c.used_at.is_(None))
        statement = (
            select(refresh_tokens.c.session_id)
            .group_by(refresh_tokens.c.session_id)
            .having(unused == 0, func.max(refresh_tokens.c.used_at) > since)
        )
        async with self._database.read() as tx:
            sessions = (await tx.execute(statement)).scalars().all()
        for session_id in sessions:
            await self._end(session_id)

    async def _end(self, session_id: str) -> None:
        await self._state.put(_ended(session_id), b"1", self._token_seconds)

    async def _row(self, tx: AsyncConnection, user_id: str) -> Row[Any]:
        row = await store.by_id(tx, user_id)
        if row is None:
            raise NotFound("there is no such user")
        return row

    async def avatar(self, event: UserAvatarUploaded) -> None:
        """Show the picture, unless a newer one has been heard of."""
        newer = users.c.avatar_version < event.version
        async with self._database.begin() as tx:
            shown = {"avatar_url": event.avatar_url, "avatar_version": event.version}
            await store.change(tx, event.user_id, self._clock.now(), newer, **shown)

    async def after(self, query: AccountsAfter) -> AccountList:
        """Some of the accounts, by id."""
        async with self._database.read() as tx:
            rows = await store.after(tx, query.after, max(1, min(query.limit, PAGE)))
            total = None if query.after else await store.count(tx)
        return AccountList(items=[_account(row) for row in rows], total=total)

    async def of(self, query: AccountsOf) -> AccountList:
        async with self._database.read() as tx:
            rows = await store.of(tx, query.user_ids[:PAGE])
        return AccountList(items=[_account(row) for row in rows], total=None)

    async def forget_old(self) -> None:
        """Drop what nobody can ask for any more."""
        async with self._database.begin() as tx:
            await store.forget_ended(tx, self._clock.now() - timedelta(days=1))


def _ended(session_id: str) -> str:
    return f"session:ended:{session_id}"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _updated(row: Row[Any], version: int, changed: tuple[str, ...]) -> UserUpdated:
    return UserUpdated(
        user_id=row.id, version=version, full_name=row.full_name, email=row.email, role=row.role, changed=changed
    )


def _farewell(row: Row[Any], version: int) -> list[Event]:
    """Who leaves is no longer ready, and no longer looks: whoever keeps a pool or a search hears it."""
    said: list[Event] = [
        UserUpdated(user_id=row.id, version=version, full_name=None, email=None, role=row.role, deleted=True)
    ]
    if row.beacon_active:
        card = DriverCard(name="", vehicle_type=row.vehicle_type, vehicle_plate="")
        left = UserBeacon(
            user_id=row.id, version=version, is_active=False, driver=card, avatar_version=row.avatar_version
        )
        said.append(left)
    if row.finder_active:
        said.append(UserFinder(user_id=row.id, version=version, is_active=False, passenger=PassengerCard(name="")))
    return said


def _vehicle(row: Row[Any]) -> Vehicle | None:
    if row.vehicle_type is None:
        return None
    return Vehicle(vehicle_type=row.vehicle_type, vehicle_plate=row.vehicle_plate)


def _account(row: Row[Any]) -> Account:
    return Account(
        user_id=row.id,
        version=row.version,
        role=row.role,
        created_at=row.created_at,
        msisdn_suffix=row.msisdn[-SUFFIX:],
        full_name=row.full_name,
        email=row.email,
        vehicle=_vehicle(row),
    )


def _user(row: Row[Any]) -> User:
    return User(
        id=row.id,
        msisdn=row.msisdn,
        full_name=row.full_name,
        email=row.email,
        role=row.role,
        created_at=row.created_at,
        updated_at=row.updated_at,
        vehicle=_vehicle(row),
        avatar_url=row.avatar_url,
    )
