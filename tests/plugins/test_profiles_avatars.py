"""Pictures of users: taken in, made small, served, replaced; bad ones, and bad moments."""

import asyncio
import shutil
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from sqlalchemy import select

from nebengjek.contracts.users import UserAvatarUploaded
from nebengjek_plugins.profiles.tables import pictures
from tests.flows.conftest import Backend
from tests.flows.world import Phone, World
from tests.plugins.images import picture, png_bomb, upload
from tests.plugins.test_profiles_flow import files, person, plugged


def token_of(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    return str(answer.json()["avatar_url"]).rpartition("/")[2]


def uploaded(phone: Phone, token: str) -> UserAvatarUploaded:
    """What was said of the first picture."""
    url, key = f"/avatars/{token}", f"avatars/{token}/original.webp"
    return UserAvatarUploaded(user_id=phone.user_id, version=1, avatar_url=url, file_key=key)


def all_of(token: str) -> set[str]:
    return {f"{token}/{name}" for name in ("original", "64", "128", "512")}


async def settled(world: World) -> None:
    await world.quiet()
    await world.app.sweep()


async def test_a_picture_is_taken_in_made_small_and_shown(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        answer = await upload(ani, picture("PNG", (600, 400)), name="whatever.txt", kind="text/plain")
        token = token_of(answer)
        assert answer.json()["version"] == 1
        await settled(world)
        assert files(tmp_path) == all_of(token)
        profile = await ani.ask("GET", "/users/me/profile")
        assert profile["avatar_ready"] is True
        assert (await ani.ask("GET", "/users/me"))["avatar_url"] == profile["avatar"]["original"]
        for name, size in (("original", (600, 400)), ("64", (64, 64)), ("128", (128, 128)), ("512", (512, 512))):
            shown = await world.http.get(profile["avatar"][name])
            assert (shown.status_code, shown.headers["content-type"]) == (200, "image/webp")
            assert "immutable" in shown.headers["cache-control"]
            assert Image.open(BytesIO(shown.content)).size == size
            etag = shown.headers["etag"]
            for known in (etag, f'"other", W/{etag}', "*"):
                again = await world.http.get(profile["avatar"][name], headers={"If-None-Match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
            asked = await world.http.head(profile["avatar"][name], headers={"If-None-Match": '"other"'})
            assert (asked.status_code, asked.content, asked.headers["etag"]) == (200, b"", etag)
            assert asked.headers["content-length"] == str(len(shown.content))
        assert (await world.http.get(f"/avatars/{token}/1024")).status_code == 404
        assert (await world.http.get("/avatars/nobody")).status_code == 404


async def test_the_old_files_go_when_the_new_ones_are_there_and_old_addresses_lead_on(
    backend: Backend, tmp_path: Path
) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        old = token_of(await upload(ani, picture(colour="red")))
        await settled(world)
        new = token_of(await upload(ani, picture(colour="blue")))
        await settled(world)
        assert files(tmp_path) == all_of(new)
        moved = await world.http.get(f"/avatars/{old}/64")
        assert (moved.status_code, moved.headers["location"]) == (307, f"/avatars/{new}/64")
        await ani.ask("DELETE", "/users/me/avatar")
        await settled(world)
        assert files(tmp_path) == set()
        assert (await ani.ask("GET", "/users/me/profile"))["avatar"] == {}
        assert (await ani.ask("GET", "/users/me")).get("avatar_url") is None
        assert (await world.http.get(f"/avatars/{new}")).status_code == 404


async def test_two_uploads_at_once_leave_one_picture(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        answers = await asyncio.gather(*(upload(ani, picture(colour=one)) for one in ("red", "blue", "green")))
        assert sorted(answer.json()["version"] for answer in answers) == [1, 2, 3]
        await settled(world)
        last = max(answers, key=lambda answer: answer.json()["version"])
        assert files(tmp_path) == all_of(token_of(last))
        assert (await ani.ask("GET", "/users/me"))["avatar_url"] == last.json()["avatar_url"]


async def test_thumbnails_that_come_too_late_go_with_their_picture(embedded: Backend, tmp_path: Path) -> None:
    """The event of a picture is handled when its successor is in place and its own files have gone."""
    async with embedded.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        first = token_of(await upload(ani, picture()))
        second = token_of(await upload(ani, picture(colour="blue")))
        await settled(world)
        late = tmp_path / "pictures" / "avatars" / first / "64.webp"
        late.parent.mkdir(exist_ok=True)
        late.write_bytes(b"made while the files went")
        await world.handler("profiles.thumbnails", UserAvatarUploaded)(uploaded(ani, first))
        assert files(tmp_path) == all_of(second)


async def test_what_is_no_picture_is_refused_and_nothing_is_kept(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        script = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
        for data in (b"", script, picture()[:500], png_bomb()):
            answer = await upload(ani, data, name="me.png", kind="image/png")
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_IMAGE"), data[:20]
        huge = await upload(ani, picture() + b"\0" * (6 * 1024 * 1024))
        assert (huge.status_code, huge.json()["code"]) == (413, "TOO_LARGE")
        for form in ({}, {"a": ("a", b"x"), "b": ("b", b"y")}):
            answer = await world.http.put("/users/me/avatar", files=form, headers=ani.bearer)
            assert answer.status_code == 400, answer.text
        plain = await world.http.put("/users/me/avatar", json={"file": "x"}, headers=ani.bearer)
        assert plain.status_code in (400, 415)
        assert (await world.http.put("/users/me/avatar", files={"f": ("f", picture())})).status_code == 401
        assert files(tmp_path) == set()
        assert (await ani.ask("GET", "/users/me")).get("avatar_url") is None


async def test_too_many_uploads_are_refused(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path, uploads_per_hour=2)) as world:
        ani = await person(world)
        answers = [await upload(ani, picture()) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]


@pytest.mark.parametrize("lost", ["new", "kept", "dropped"])
async def test_killed_between_two_steps_the_next_look_goes_on(embedded: Backend, tmp_path: Path, lost: str) -> None:
    """``new``: the file was stored, the profile not changed; ``kept``: no thumbnails; ``dropped``: files remain."""
    async with embedded.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        token = token_of(await upload(ani, picture()))
        await settled(world)
        if lost == "kept":
            for name in ("64", "128"):
                (tmp_path / "pictures" / "avatars" / token / f"{name}.webp").unlink()
        async with world.app.database.begin() as tx:
            await tx.execute(pictures.update().values(state=lost, ready=False))
        if lost == "kept":
            early = await world.http.get(f"/avatars/{token}/64")
            assert (early.status_code, "immutable" in early.headers["cache-control"]) == (200, False)
            said = UserAvatarUploaded(
                user_id=ani.user_id,
                version=1,
                avatar_url=f"/avatars/{token}",
                file_key=f"avatars/{token}/original.webp",
            )
            await world.handler("profiles.thumbnails", UserAvatarUploaded)(said)
            assert files(tmp_path) == all_of(token)
            assert "immutable" in (await world.http.get(f"/avatars/{token}/64")).headers["cache-control"]
            return
        await world.advance(3601)
        await world.app.sweep()
        assert files(tmp_path) == set()
        async with world.app.database.read() as tx:
            assert (await tx.execute(select(pictures.c.state))).scalars().all() == ["gone"]


async def test_a_file_that_is_lost_before_its_event_is_missed_and_made_small_when_it_is_back(
    embedded: Backend, tmp_path: Path
) -> None:
    async with embedded.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        token = token_of(await upload(ani, picture()))
        await settled(world)
        folder = tmp_path / "pictures" / "avatars" / token
        shutil.move(folder, tmp_path / "aside")
        event = uploaded(ani, token)
        handler = world.handler("profiles.thumbnails", UserAvatarUploaded)
        with pytest.raises(Exception, match="is not in the store"):
            await handler(event)
        shutil.move(tmp_path / "aside", folder)
        await handler(event)
        assert files(tmp_path) == all_of(token)
