"""Pictures of users: taken in, made small, shown, and removed when newer ones are in their place.

Each picture has a token of its own, so whatever is shown under it never changes. Steps: a row ``new``, the file, then
in one transaction the row ``kept``, the profile and the event; on the event the thumbnails, then ``ready`` and the
older ones ``dropped`` in one transaction, then their files. Killed between any two, the next delivery or ``tidy``
goes on.
"""

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from msgspec import Struct
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.users import UserAvatarUploaded
from nebengjek.database import Database
from nebengjek.errors import NotFound, RateLimited
from nebengjek.faststate import FastState
from nebengjek_plugins.profiles.cache import Cache
from nebengjek_plugins.profiles.files import Files
from nebengjek_plugins.profiles.people import meet
from nebengjek_plugins.profiles.pictures import SIZES, clean, thumbnails
from nebengjek_plugins.profiles.settings import ProfilesSettings
from nebengjek_plugins.profiles.tables import people, pictures

T = TypeVar("T")

ORIGINAL = "original"
_NAMES = (ORIGINAL, *map(str, SIZES))
_HOUR = timedelta(hours=1)
_MONTH = timedelta(days=30)
_AT_ONCE = 100


class Uploaded(Struct, frozen=True, kw_only=True):
    """The thumbnails follow; until then the whole picture is shown in their place."""

    avatar_url: str
    version: int


class Shown(Struct, frozen=True, kw_only=True):
    """``elsewhere``: the address of the picture that has taken its place. ``final``: it will never change."""

    data: bytes = b""
    etag: str = ""
    final: bool = False
    elsewhere: str | None = None


class Gallery:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        state: FastState,
        clock: Clock,
        files: Files,
        cache: Cache,
        settings: ProfilesSettings,
    ) -> None:
        self._bus = bus
        self._database = database
        self._state = state
        self._clock = clock
        self._files = files
        self._cache = cache
        self._settings = settings
        self._workers = settings.workers
        self._limiter: CapacityLimiter | None = None

    # -- commands

    async def upload(self, user_id: str, data: bytes) -> Uploaded:
        """Raises Invalid (INVALID_IMAGE), RateLimited, NotFound (he left), Unavailable (the store)."""
        hits, left = await self._state.hit(f"avatar:{user_id}", 3600.0)
        if hits > self._settings.uploads_per_hour:
            raise RateLimited("enough pictures for now", retry_after=left)
        picture = await self._work(clean, data, self._settings.max_pixels)
        token = secrets.token_urlsafe(16)
        async with self._database.begin() as tx:
            row = {"token": token, "user_id": user_id, "state": "new", "ready": False}
            await tx.execute(insert(pictures).values(**row, changed_at=self._clock.now()))
        await self._files.put(_key(token, ORIGINAL), picture)
        async with self._database.begin() as tx:
            version = await self._show(tx, user_id, token)
        await self._cache.forget(user_id)
        return Uploaded(avatar_url=_address(token), version=version)

    async def remove(self, user_id: str) -> None:
        """Show none. Nothing happens where none is."""
        async with self._database.begin() as tx:
            row = await meet(tx, people, user_id, self._clock.now())
            if row.avatar_token is None:
                return
            version = await take_down(tx, row, self._clock.now())
            gone = UserAvatarUploaded(user_id=user_id, version=version, avatar_url=None, file_key="")
            await self._bus.outbox.add(tx, gone)
        await self._cache.forget(user_id)

    async def _show(self, tx: AsyncConnection, user_id: str, token: str) -> int:
        now = self._clock.now()
        row = await meet(tx, people, user_id, now)
        if row.deleted:
            raise NotFound("there is no such user")
        version: int = row.avatar_version + 1
        mine = people.c.user_id == user_id
        await tx.execute(update(people).where(mine).values(avatar_version=version, avatar_token=token, changed_at=now))
        kept = {"state": "kept", "version": version, "changed_at": now}
        await tx.execute(update(pictures).where(pictures.c.token == token).values(**kept))
        event = UserAvatarUploaded(
            user_id=user_id, version=version, avatar_url=_address(token), file_key=_key(token, ORIGINAL)
        )
        await self._bus.outbox.add(tx, event)
        return version

    # -- events

    async def uploaded(self, event: UserAvatarUploaded) -> None:
        """Make the thumbnails; then the older pictures may go. Raises NotFound when the picture's file is lost."""
        token = event.file_key.split("/")[1] if event.file_key else None
        if token is not None and not (await self._is_kept(token) and await self._make_small(event, token)):
            # Another has taken its place, perhaps meanwhile: its files, these too, go once more.
            async with self._database.begin() as tx:
                passed = update(pictures).where(pictures.c.token == token, pictures.c.state == "gone")
                await tx.execute(passed.values(state="dropped", changed_at=self._clock.now()))
        await self._cache.forget(event.user_id)
        await self._forget_files(pictures.c.user_id == event.user_id)

    async def _make_small(self, event: UserAvatarUploaded, token: str) -> bool:
        """False: another picture has taken its place meanwhile."""
        picture = await self._files.get(event.file_key)
        if picture is None:
            if await self._is_kept(token):
                raise NotFound(f"{event.file_key} is not in the store")
            return False
        for size, small in (await self._work(thumbnails, picture)).items():
            await self._files.put(_key(token, str(size)), small)
        now = self._clock.now()
        async with self._database.begin() as tx:
            ready = update(pictures).where(pictures.c.token == token, pictures.c.state == "kept")
            if not (await tx.execute(ready.values(ready=True, changed_at=now))).rowcount:
                return False
            older = (pictures.c.user_id == event.user_id) & (pictures.c.version < event.version)
            dropped = update(pictures).where(older, pictures.c.state == "kept")
            await tx.execute(dropped.values(state="dropped", changed_at=now))
        return True

    async def _is_kept(self, token: str) -> bool:
        async with self._database.read() as tx:
            state = (await tx.execute(select(pictures.c.state).where(pictures.c.token == token))).scalar()
        return state == "kept"

    # -- showing

    async def show(self, token: str, size: str) -> Shown:
        """Raises NotFound: there is no such picture, or its owner shows none any more."""
        if size not in _NAMES:
            raise NotFound(f"there is no size {size}: expected one of {', '.join(_NAMES)}")
        async with self._database.read() as tx:
            row = (await tx.execute(select(pictures).where(pictures.c.token == token))).first()
            if row is None:
                raise NotFound("there is no such picture")
            mine = select(people.c.avatar_token).where(people.c.user_id == row.user_id)
            current = (await tx.execute(mine)).scalar()
        final = size == ORIGINAL or row.ready
        if row.state == "kept":
            data = await self._files.get(_key(token, size if final else ORIGINAL))
            if data is not None:
                return Shown(data=data, etag=f'"{token}-{size if final else ORIGINAL}"', final=final)
        if current is None or current == token:
            raise NotFound("there is no such picture")
        return Shown(elsewhere=_address(current) + ("" if size == ORIGINAL else f"/{size}"))

    # -- what is left over

    async def tidy(self) -> None:
        """Remove the files of dropped pictures, and of uploads that came to nothing."""
        now = self._clock.now()
        async with self._database.begin() as tx:
            lost = update(pictures).where(pictures.c.state == "new", pictures.c.changed_at < now - _HOUR)
            await tx.execute(lost.values(state="dropped", changed_at=now))
            old = delete(pictures).where(pictures.c.state == "gone", pictures.c.changed_at < now - _MONTH)
            await tx.execute(old)
        await self._forget_files()

    async def _forget_files(self, *whose: Any) -> None:
        dropped = select(pictures.c.token).where(pictures.c.state == "dropped", *whose).limit(_AT_ONCE)
        async with self._database.read() as tx:
            tokens = list((await tx.execute(dropped)).scalars())
        for token in tokens:
            await self._files.delete(_key(token, name) for name in _NAMES)
            async with self._database.begin() as tx:
                gone = update(pictures).where(pictures.c.token == token)
                await tx.execute(gone.values(state="gone", changed_at=self._clock.now()))

    async def _work(self, work: Callable[..., T], *arguments: Any) -> T:
        """In a thread, so many at once as was set: the others wait without holding the event loop up."""
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._workers)
        return await to_thread.run_sync(work, *arguments, limiter=self._limiter)


async def take_down(tx: AsyncConnection, row: Row[Any], now: datetime) -> int:
    """Show no picture of a person any more; the version of that."""
    none = {"avatar_token": None, "avatar_version": row.avatar_version + 1, "changed_at": now}
    await tx.execute(update(people).where(people.c.user_id == row.user_id).values(**none))
    mine = (pictures.c.user_id == row.user_id) & (pictures.c.state == "kept")
    await tx.execute(update(pictures).where(mine).values(state="dropped", changed_at=now))
    version: int = row.avatar_version + 1
    return version


def addresses(token: str) -> dict[str, str]:
    """Where a picture is shown, by size."""
    return {ORIGINAL: _address(token), **{str(size): f"{_address(token)}/{size}" for size in SIZES}}


def _address(token: str) -> str:
    return f"/avatars/{token}"


def _key(token: str, name: str) -> str:
    return f"avatars/{token}/{name}.webp"
