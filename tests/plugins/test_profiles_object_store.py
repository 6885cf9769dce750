"""Pictures in an S3: a real server of its own, that goes away, comes back, and knows whom it serves."""

import asyncio
from collections.abc import Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store
from PIL import Image

from nebengjek.errors import Misconfigured, Unavailable
from nebengjek_plugins.profiles.files import Files
from nebengjek_plugins.profiles.settings import ProfilesSettings
from tests.flows.conftest import Backend
from tests.flows.world import WAIT, World
from tests.plugins.images import picture, upload
from tests.plugins.test_profiles_avatars import all_of, settled, token_of
from tests.plugins.test_profiles_flow import person, plugged
from tests.servers import NatsServer, ObjectStore, nats_server, object_store

_number = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """One that may go away: the others' has what all of them left in it to read again."""
    with nats_server() as server:
        yield server


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a place where nobody has put anything."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    return {"store": f"s3://tests/pictures-{next(_number)}", "store_endpoint": server.url}


def files(server: ObjectStore, s3: dict[str, Any]) -> set[str]:
    """``token/size`` of what lies there."""
    store = S3Store.from_url(
        s3["store"],
        endpoint=server.url,
        region="us-east-1",
        access_key_id=server.key_id,
        secret_access_key=server.secret,
        client_options={"allow_http": True},
    )
    paths = [Path(one["path"]) for page in obstore.list(store) for one in page]
    return {f"{path.parent.name}/{path.stem}" for path in paths if path.suffix == ".webp"}


async def test_pictures_are_stored_shown_replaced_and_removed(
    backend: Backend, server: ObjectStore, s3: dict[str, Any]
) -> None:
    async with backend.own_world(**plugged(Path(), **s3)) as world:
        ani = await person(world)
        old = token_of(await upload(ani, picture(colour="red")))
        await settled(world)
        assert files(server, s3) == all_of(old)
        shown = await world.http.get(f"/avatars/{old}/128")
        assert Image.open(BytesIO(shown.content)).size == (128, 128)
        answers = await asyncio.gather(*(upload(ani, picture(colour=one)) for one in ("blue", "green")))
        await settled(world)
        last = token_of(max(answers, key=lambda answer: answer.json()["version"]))
        assert files(server, s3) == all_of(last)
        assert (await world.http.get(f"/avatars/{old}/128")).headers["location"] == f"/avatars/{last}/128"
        await ani.ask("DELETE", "/users/me")
        await settled(world)
        assert files(server, s3) == set()


async def until_the_store_is_missed(world: World) -> None:
    async with asyncio.timeout(WAIT):
        while (await world.app.bus.health()).breakers.get("object store", "closed") == "closed":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# With one kind of other stores: each start of the picture's own takes seconds.
async def test_a_store_that_goes_with_nats_between_upload_and_event_holds_the_event_and_loses_no_try(
    embedded: Backend, server: ObjectStore, s3: dict[str, Any], nats: NatsServer
) -> None:
    given = plugged(Path(), **s3, store_timeout=1)
    async with embedded.own_world(**given, nats__url=nats.fresh_account()) as world:
        ani = await person(world)
        await settled(world)
        nats.kill()
        try:
            uploaded = await upload(ani, picture())
            server.kill()
        finally:
            await asyncio.to_thread(nats.start)
        try:
            assert uploaded.status_code == 202
            # The event comes once NATS is back, and finds no store.
            await until_the_store_is_missed(world)
            assert (await upload(ani, picture())).status_code == 503
        finally:
            await asyncio.to_thread(server.start)
        await settled(world)
        token = token_of(uploaded)
        assert files(server, s3) == all_of(token)
        assert (await ani.ask("GET", "/users/me/profile"))["avatar_ready"] is True
        assert await world.app.bus.dead_letters.list() == []


async def test_wrong_credentials_refuse_to_start_and_name_the_setting(
    server: ObjectStore, s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, settings = Files(ProfilesSettings(**s3)), ProfilesSettings(**s3)
    await right.open()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "wrong")
            wrong = Files(settings)
            with pytest.raises(Misconfigured, match=r"plugin\.profiles\.store: s3://.* AWS_SECRET_ACCESS_KEY"):
                await wrong.open()
            # Changed while the process runs: whoever asks is told so, and the event waits.
            with pytest.raises(Unavailable, match=r"plugin\.profiles\.store"):
                await wrong.get("avatars/a/original.webp")
    assert await right.get("avatars/a/original.webp") is None


async def test_a_store_that_does_not_answer_does_not_keep_the_process_from_starting(s3: dict[str, Any]) -> None:
    nowhere = Files(ProfilesSettings(**s3 | {"store_endpoint": "http://127.0.0.1:9"}, store_timeout=0.2))
    await nowhere.open()
    with pytest.raises(Unavailable, match="object store"):
        await nowhere.put("avatars/a/original.webp", b"")
