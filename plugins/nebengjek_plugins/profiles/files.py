"""Where pictures lie: a folder, or an object store such as S3, through obstore."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store, from_url

from nebengjek.errors import Misconfigured, Unavailable
from nebengjek_plugins.profiles.settings import ProfilesSettings


class Files:
    """Every method raises Unavailable("object store") when the store does not answer in time, or refuses."""

    def __init__(self, settings: ProfilesSettings) -> None:
        self._settings = settings
        self._timeout = settings.store_timeout

    @cached_property
    def _store(self) -> ObjectStore:
        return _open(self._settings)

    async def open(self) -> None:
        """Make the folder, or see that the URL names a store; it is not asked yet. Raises Misconfigured."""
        assert self._store is not None

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
