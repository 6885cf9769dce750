"""Where pictures lie: a folder, or an object store such as S3, through obstore."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path

import obstore
import structlog
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store, from_url

from nebengjek.errors import Misconfigured, Unavailable
from nebengjek_plugins.profiles.settings import ProfilesSettings

log = structlog.stdlib.get_logger("nebengjek.profiles")


class StoreRefuses(Unavailable):
    """It answers, but not to us: until somebody mends the credentials it is as good as gone."""

    def __init__(self, store: str) -> None:
        refused = f"plugin.profiles.store: {store} refuses the credentials of the environment"
        super().__init__("object store", f"{refused} (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY for an S3)")


class Files:
    """Every method raises Unavailable("object store") when the store does not answer in time, or refuses."""

    def __init__(self, settings: ProfilesSettings) -> None:
        self._settings = settings
        self._timeout = settings.store_timeout

    @cached_property
    def _store(self) -> ObjectStore:
        return _open(self._settings)

    async def open(self) -> None:
        """Make the folder, or see that the store takes a file from us; one that does not answer may do so later.

        Raises Misconfigured: no store can be at that address, there is no such bucket, it refuses our credentials.
        """
        if isinstance(self._store, LocalStore):
            return
        try:
            await self.put("avatars/.nebengjek", b"")
        except StoreRefuses as error:
            raise Misconfigured(error.message) from error
        except FileNotFoundError as error:
            raise Misconfigured(f"plugin.profiles.store: there is no bucket of {self._settings.store}") from error
        except Unavailable as error:
            log.warning(
                "profiles.store_unavailable", store=self._settings.store, reason=str(error.__cause__).partition("\n")[0]
            )

    async def put(self, key: str, data: bytes) -> None:
        """Whole or not at all; what was there is replaced."""
        async with self._reaching():
            await obstore.put_async(self._store, key, data)

    async def get(self, key: str) -> bytes | None:
        try:
            async with self._reaching():
                found = await obstore.get_async(self._store, key)
                return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None

    async def delete(self, keys: Iterable[str]) -> None:
        """What is not there is gone already."""
        for key in keys:
            try:
                async with self._reaching():
                    await obstore.delete_async(self._store, key)
            except FileNotFoundError:
                continue

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except (FileNotFoundError, NotFoundError) as error:
            raise FileNotFoundError from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreRefuses(self._settings.store) from error
        except (BaseError, OSError) as error:  # a TimeoutError is an OSError
            raise Unavailable("object store") from error


def _open(settings: ProfilesSettings) -> ObjectStore:
    try:
        if "://" not in settings.store:
            return LocalStore(Path(settings.store).absolute(), mkdir=True)
        if settings.store.startswith("s3://"):
            endpoint = settings.store_endpoint or f"https://s3.{settings.store_region}.amazonaws.com"
            return S3Store.from_url(
                settings.store,
                region=settings.store_region,
                endpoint=endpoint,
                client_options={"allow_http": endpoint.startswith("http://")},
            )
        return from_url(settings.store)
    except (BaseError, ValueError, OSError) as error:
        raise Misconfigured(f"plugin.profiles.store: {settings.store} cannot be used: {error}") from error
