"""From an account to its profile, its picture and the operators' search, embedded and on real servers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from nebengjek.contracts.users import UserAvatarUploaded, UserCreated, UserDriverRegistered, UserUpdated, Vehicle
from nebengjek_plugins.profiles.tables import found, people, signups
from tests.flows.conftest import Backend
from tests.flows.world import BUNDARAN_HI, MONAS, Phone, Refused, World
from tests.plugins.images import picture, upload


def plugged(folder: Path, **values: Any) -> dict[str, Any]:
    table = {"store": str(folder / "pictures"), **values}
    return {"plugins": ["nebengjek_plugins.profiles:profiles"], "plugin": {"profiles": table}}


def files(folder: Path) -> set[str]:
    """``token/size`` of what lies in the store."""
    return {f"{path.parent.name}/{path.stem}" for path in folder.rglob("*.webp")}


async def search(world: World, query: str) -> list[str]:
    """The ids of who is found."""
    key = {"X-API-Key": world.app.settings.admin.api_key}
    answer = await world.http.get("/admin/users", params={"q": query}, headers=key)
    assert answer.status_code == 200, answer.text
    return [item["user_id"] for item in answer.json()["items"]]


async def rebuild(world: World, limit: int = 500) -> tuple[int, int]:
    """(indexed, removed), step by step as `nebengjek search rebuild` asks for it."""
    key = {"X-API-Key": world.app.settings.admin.api_key}
    indexed, removed, after = 0, 0, ""
    while True:
        where = {"after": after, "limit": str(limit)}
        answer = await world.http.post("/admin/users/search/rebuild", params=where, headers=key)
        assert answer.status_code == 200, answer.text
        step = answer.json()
        indexed, removed = indexed + step["indexed"], removed + step["removed"]
        if step["next"] is None:
            return indexed, removed
        after = step["next"]


async def person(world: World) -> Phone:
    """Somebody with an account and no socket."""
    return await Phone(world).login()


async def test_a_profile_follows_the_account(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        await world.quiet()
        profile = await ani.ask("GET", "/users/me/profile")
        assert (profile["user_id"], profile["role"], profile["full_name"]) == (ani.user_id, "passenger", None)
        assert profile["avatar"] == {}
        await ani.ask("PATCH", "/users/me", {"full_name": "Ani", "email": "ani@example.org"})
        await ani.become_driver("Ani Driver")
        await world.quiet()
        profile = await ani.ask("GET", "/users/me/profile")
        assert (profile["role"], profile["full_name"], profile["email"]) == ("driver", "Ani Driver", "ani@example.org")
        assert profile["vehicle"]["vehicle_type"] == "motorcycle"
        key = {"X-API-Key": world.app.settings.admin.api_key}
        days = (await world.http.get("/admin/signups", headers=key)).json()["days"]
        assert sum(days.values()) == 1


async def test_who_leaves_is_forgotten_everywhere(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        await ani.ask("PATCH", "/users/me", {"full_name": "Ani Lestari"})
        url = (await upload(ani, picture())).json()["avatar_url"]
        await world.quiet()
        assert await search(world, "lestari") == [ani.user_id]
        await ani.ask("DELETE", "/users/me")
        await world.quiet()
        await world.app.sweep()
        assert await search(world, "lestari") == []
        assert (await world.http.get(url)).status_code == 404
        assert files(tmp_path) == set()
        async with world.app.database.read() as tx:
            row = (await tx.execute(select(people).where(people.c.user_id == ani.user_id))).one()
        assert (row.full_name, row.msisdn_suffix, row.avatar_token, row.deleted) == (None, None, None, True)


async def test_news_that_comes_late_twice_and_in_any_order_makes_the_same_profile(
    backend: Backend, tmp_path: Path
) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        now = world.clock.now()
        vehicle = Vehicle(vehicle_type="car", vehicle_plate="B 7 Z")
        for number, order in enumerate(([0, 1, 2], [2, 1, 0], [2, 0, 1], [1, 1, 2, 2, 0, 2, 0])):
            user_id = f"0192f0bf-0000-7e75-839f-00000000000{number}"
            said = [
                UserCreated(user_id=user_id, version=1, role="passenger", created_at=now, msisdn_suffix="234567"),
                UserUpdated(user_id=user_id, version=2, full_name="Bud", email="b@example.org", role="passenger"),
                UserDriverRegistered(
                    user_id=user_id, version=3, full_name="Budi S", email="b@example.org", vehicle=vehicle
                ),
            ]
            for index in order:
                for module in ("profiles", "profiles.search", "profiles.analytics"):
                    for hearing in next(one for one in world.app.modules if one.name == module).hears:
                        if hearing.event is type(said[index]):
                            await hearing.handler(said[index])
            async with world.app.database.read() as tx:
                row = (await tx.execute(select(people).where(people.c.user_id == user_id))).one()
                came = (await tx.execute(select(func.count()).where(signups.c.user_id == user_id))).scalar()
            known = (row.version, row.role, row.full_name, row.email, row.msisdn_suffix, row.vehicle_plate)
            assert known == (3, "driver", "Budi S", "b@example.org", "234567", "B 7 Z"), order
            assert came == 1
            assert user_id in await search(world, "budi 4567 b7z")


async def test_operators_find_people_by_name_number_and_plate(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani, budi, other = await asyncio.gather(person(world), person(world), person(world))
        await ani.ask("PATCH", "/users/me", {"full_name": "Ánî Rahmawati-Putri"})
        form = {"full_name": "Budi O'Neill", "vehicle_type": "car", "vehicle_plate": "DK 4321 XYZ"}
        budi.token = (await budi.ask("POST", "/drivers/register", form))["token"]
        await world.quiet()
        for query in ("ani", "RAHMA", "putri ani", "rahmawati-putri", ani.msisdn[-4:], f"ani {ani.msisdn[-3:]}"):
            assert ani.user_id in await search(world, query), query
        for query in ("dk 4321 xyz", "DK4321XYZ", "4321", "budi 4321", "neill", budi.msisdn[-6:], budi.msisdn):
            assert budi.user_id in await search(world, query), query
        assert await search(world, other.msisdn[-6:]) == [other.user_id]
        for query in (
            "nobody",
            "budi rahma",
            '") OR 1=1 --',
            "a'b:*&!|",
            "NEAR(x y)",
            "xyz AND NOT budi",
            "ani 〇½²王\0",
        ):
            assert await search(world, query) == [], query
        spaced = f"+62 {other.msisdn[3:6]}-{other.msisdn[6:10]} {other.msisdn[10:]}"
        assert await search(world, spaced) == [other.user_id]
        # A plate is read forwards only, whatever letter it begins with.
        malang = Vehicle(vehicle_type="car", vehicle_plate="N 9876 AB")
        plated = UserDriverRegistered(user_id=other.user_id, version=9, full_name="Putu", vehicle=malang)
        await world.handler("profiles.search", UserDriverRegistered)(plated)
        assert (await search(world, "9876"), await search(world, "6789")) == ([other.user_id], [])
        key = {"X-API-Key": world.app.settings.admin.api_key}
        nothing = await world.http.get("/admin/users", params={"q": "?!"}, headers=key)
        assert (nothing.status_code, nothing.json()["code"]) == (400, "INVALID")
        assert (await world.http.get("/admin/users", params={"q": "ani"}, headers=ani.bearer)).status_code == 401


async def test_what_is_found_can_be_read_page_by_page(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        now = world.clock.now()
        names = [None, "Wayan C", "Wayan A", None, "Wayan B", "Wayan A", "Wayan Ö"]
        rows = [
            {"user_id": f"wayan-{number}", "version": 1, "deleted": False, "full_name": name, "changed_at": now}
            | {"words": "wayan"}
            for number, name in enumerate(names)
        ]
        async with world.app.database.begin() as tx:
            await tx.execute(found.insert(), rows)
        whole = await search(world, "wayan")
        assert sorted(whole) == [row["user_id"] for row in rows]
        assert whole[:2] == ["wayan-0", "wayan-3"]
        key = {"X-API-Key": world.app.settings.admin.api_key}
        for limit in (1, 2, 7):
            read, where = [], {"q": "wayan", "limit": str(limit)}
            while True:
                page = (await world.http.get("/admin/users", params=where, headers=key)).json()
                assert 0 < len(page["items"]) <= limit
                read += [item["user_id"] for item in page["items"]]
                if page["next_cursor"] is None:
                    break
                where["cursor"] = page["next_cursor"]
            assert read == whole, limit
        for cursor in ("x", "!", "ä", "bnVsbA", "WyJcdTAwMDAiLCJhIl0", "/w"):
            answer = await world.http.get("/admin/users", params={"q": "wayan", "cursor": cursor}, headers=key)
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID"), cursor


async def test_a_search_index_that_was_lost_is_built_anew_from_the_accounts(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        crowd = [await person(world) for _ in range(5)]
        for one in crowd:
            await one.ask("PATCH", "/users/me", {"full_name": "Wayan"})
        await crowd[4].ask("DELETE", "/users/me")
        await world.quiet()
        world.clock.advance(3600)
        async with world.app.database.begin() as tx:
            await tx.execute(delete(found).where(found.c.user_id != crowd[0].user_id))
            stray = {"user_id": "~nobody", "version": 1, "deleted": False, "full_name": "Wayan", "words": "wayan"}
            await tx.execute(found.insert().values(**stray, changed_at=world.clock.now()))
        world.clock.advance(3600)
        assert len(await search(world, "wayan")) == 2
        assert await rebuild(world, limit=2) == (4, 1)
        assert sorted(await search(world, "wayan")) == sorted(one.user_id for one in crowd[:4])
        await crowd[1].ask("PATCH", "/users/me", {"full_name": "Ketut"})
        await world.quiet()
        assert await search(world, "ketut") == [crowd[1].user_id]
        assert len(await search(world, "wayan")) == 3


async def test_accounts_that_are_older_than_the_plugin_have_profiles_after_a_rebuild(
    backend: Backend, tmp_path: Path
) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani, budi = await person(world), await person(world)
        await budi.become_driver()
        await world.quiet()
        async with world.app.database.begin() as tx:
            for table in (people, found, signups):
                await tx.execute(delete(table))
        # A picture may come before it.
        url = (await upload(budi, picture())).json()["avatar_url"]
        assert await rebuild(world) == (2, 0)
        assert (await ani.ask("GET", "/users/me/profile"))["role"] == "passenger"
        profile = await budi.ask("GET", "/users/me/profile")
        assert (profile["full_name"], profile["avatar"]["original"]) == ("Budi", url)
        assert profile["vehicle"]["vehicle_type"] == "motorcycle"
        key = {"X-API-Key": world.app.settings.admin.api_key}
        days = (await world.http.get("/admin/signups", headers=key)).json()["days"]
        assert sum(days.values()) == 2


async def test_what_is_said_during_a_rebuild_is_newer_than_what_the_rebuild_read(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        crowd = [await person(world) for _ in range(4)]
        for one in crowd:
            await one.ask("PATCH", "/users/me", {"full_name": "Wayan"})
        await world.quiet()
        world.clock.advance(3600)
        late = UserUpdated(user_id=crowd[1].user_id, version=2, full_name="Wayan", email=None, role="passenger")
        came: list[str] = []
        read = world.app.bus.request

        async def then_much_happens(query: Any) -> Any:
            """The accounts as they are, and before anything is made of them they are so no more."""
            page = await read(query)
            if not came:
                await crowd[0].ask("PATCH", "/users/me", {"full_name": "Made"})
                await crowd[1].ask("DELETE", "/users/me")
                new = await person(world)
                await new.ask("PATCH", "/users/me", {"full_name": "Made"})
                came.append(new.user_id)
                await world.quiet()
            return page

        monkeypatch.setattr(world.app.bus, "request", then_much_happens)
        for _ in range(2):
            await rebuild(world, limit=3)
            await world.handler("profiles.search", UserUpdated)(late)
            assert sorted(await search(world, "made")) == sorted([crowd[0].user_id, *came])
            assert sorted(await search(world, "wayan")) == sorted(one.user_id for one in crowd[2:])
            world.clock.advance(3600)


async def test_a_drivers_picture_is_in_the_proposal(backend: Backend, tmp_path: Path) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        budi, ani = await asyncio.gather(world.driver(), world.passenger())
        url = (await upload(budi, picture())).json()["avatar_url"]
        await world.quiet()
        assert (await budi.ask("GET", "/users/me"))["avatar_url"] == url
        match_id = await world.pair(budi, ani, MONAS)
        proposed = await ani.expect("match.found", match_id=match_id)
        assert proposed["data"]["driver"]["avatar_url"] == url


async def test_a_picture_that_is_new_is_in_the_next_proposal_without_another_beacon(
    backend: Backend, tmp_path: Path
) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        budi, ani = await asyncio.gather(world.driver(), world.passenger())
        await budi.say("user.beacon", {"is_active": True, "location": MONAS})
        await world.quiet()
        url = (await upload(budi, picture())).json()["avatar_url"]
        await world.quiet()
        finder = {"is_active": True, "location": MONAS, "target_location": BUNDARAN_HI}
        await ani.say("user.finder", finder)
        proposed = await ani.expect("match.found")
        assert proposed["data"]["driver"]["avatar_url"] == url


async def test_an_old_card_does_not_bring_an_old_picture_back(embedded: Backend, tmp_path: Path) -> None:
    async with embedded.own_world(**plugged(tmp_path)) as world:
        budi, ani = await asyncio.gather(world.driver(), world.passenger())
        new = UserAvatarUploaded(user_id=budi.user_id, version=3, avatar_url="/avatars/new", file_key="")
        old = UserAvatarUploaded(user_id=budi.user_id, version=2, avatar_url="/avatars/old", file_key="")
        await budi.say("user.beacon", {"is_active": False})
        await world.quiet()
        for picture_of_him in (new, old):
            await world.handler("match", UserAvatarUploaded)(picture_of_him)
        # users has heard of neither: the card on this beacon has no picture.
        match_id = await world.pair(budi, ani, MONAS)
        proposed = await ani.expect("match.found", match_id=match_id)
        assert proposed["data"]["driver"]["avatar_url"] == "/avatars/new"


async def test_a_profile_is_there_a_moment_after_the_account(backend: Backend, tmp_path: Path) -> None:
    """Until its event has been handled there is none, and that is said."""
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani = await person(world)
        await world.quiet()
        async with world.app.database.begin() as tx:
            await tx.execute(delete(people).where(people.c.user_id == ani.user_id))
        with pytest.raises(Refused, match="NOT_FOUND"):
            await ani.ask("GET", "/users/me/profile")
