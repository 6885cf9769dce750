"""One handler that fails or never ends holds up no other that hears the same; a lost index is made anew."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sqlalchemy import text

from nebengjek.contracts.users import UserCreated
from nebengjek.module import Module, on
from tests.flows.conftest import Backend
from tests.flows.world import WAIT
from tests.plugins.images import picture, upload
from tests.plugins.test_profiles_avatars import all_of, settled, token_of
from tests.plugins.test_profiles_flow import files, person, plugged, rebuild, search


class Neighbours:
    """Two who hear of new accounts: one never comes to an end, one fails, until somebody helps them."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.released = asyncio.Event()
        self.mended = False
        self.done: list[str] = []

    async def slow(self, event: UserCreated) -> None:
        self.began.set()
        await self.released.wait()
        self.done.append("slow")

    async def failing(self, event: UserCreated) -> None:
        if not self.mended:
            raise RuntimeError("not today")
        self.done.append("failing")


_made: list[Neighbours] = []


def neighbours() -> Sequence[Module]:
    """A plugin beside profiles."""
    them = Neighbours()
    _made.append(them)
    return [
        Module(name="neighbours.slow", hears=[on(UserCreated, them.slow)]),
        Module(name="neighbours.failing", hears=[on(UserCreated, them.failing, max_deliver=2)]),
    ]


async def until(there: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(WAIT):
        while not await there():  # noqa: ASYNC110 - what is waited for is in stores
            await asyncio.sleep(0.02)


async def test_a_handler_that_fails_and_one_that_never_ends_hold_up_no_other(backend: Backend, tmp_path: Path) -> None:
    given = plugged(tmp_path)
    given["plugins"].append(f"{__name__}:neighbours")
    async with backend.own_world(**given) as world:
        them = _made.pop()
        try:
            ani = await person(world)
            await them.began.wait()
            await ani.ask("PATCH", "/users/me", {"full_name": "Ani Lestari"})
            token = token_of(await upload(ani, picture()))

            async def ready() -> bool:
                """The profile and its picture, the search and the row of the sign-up are there."""
                profile = await ani.http("GET", "/users/me/profile")
                known = profile.is_success and profile.json()["full_name"] and profile.json()["avatar_ready"]
                key = {"X-API-Key": world.app.settings.admin.api_key}
                days = (await world.http.get("/admin/signups", headers=key)).json()["days"]
                return bool(known and days and await search(world, "lestari") == [ani.user_id])

            await until(ready)
            assert files(tmp_path) == all_of(token)
            dead_letters = world.app.bus.dead_letters
            await until(dead_letters.list)
            assert them.done == []
            (letter,) = await dead_letters.list()
            assert letter.consumer == "user_created_neighbours_failing"
            them.mended = True
            await dead_letters.replay(letter.seq)

            async def replayed() -> bool:
                return them.done == ["failing"]

            await until(replayed)
        finally:
            them.released.set()
        await world.quiet()
        assert sorted(them.done) == ["failing", "slow"]
        assert await dead_letters.list() == []


async def test_a_search_whose_index_was_deleted_says_so_and_a_rebuild_heals_it(
    backend: Backend, tmp_path: Path
) -> None:
    async with backend.own_world(**plugged(tmp_path)) as world:
        ani, budi = await person(world), await person(world)
        await ani.ask("PATCH", "/users/me", {"full_name": "Ani"})
        await world.quiet()
        key = {"X-API-Key": world.app.settings.admin.api_key}
        dropped = ["DROP TABLE profile_search"]
        if world.app.database.is_sqlite:
            dropped.append("DROP TABLE profile_search_text")
        for number, loss in enumerate(["DELETE FROM profile_search", *dropped]):
            async with world.app.database.begin() as tx:
                await tx.execute(text(loss))
            answer = await world.http.get("/admin/users", params={"q": "ani"}, headers=key)
            assert (answer.status_code, "nebengjek search rebuild" in answer.text) == (503, True), loss
            # What is said meanwhile waits, and loses no try.
            await budi.ask("PATCH", "/users/me", {"full_name": f"Budi {number}"})

            async def missed() -> bool:
                return (await world.app.bus.health()).breakers.get("search index", "closed") != "closed"

            if loss in dropped:
                await until(missed)
            assert await rebuild(world) == (2, 0), loss
            await settled(world)
            assert await search(world, "ani") == [ani.user_id], loss
            assert await search(world, f"budi {number}") == [budi.user_id], loss
        assert await world.app.bus.dead_letters.list() == []
