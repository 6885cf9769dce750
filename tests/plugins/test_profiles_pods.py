"""What more than one process sees of a profile; and the operator's command that builds the search anew."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from click.testing import CliRunner

from nebengjek.cli import cli
from nebengjek.clock import ManualClock
from tests.flows.conftest import Backend, Real
from tests.flows.world import Phone, running, settings_for
from tests.plugins.test_profiles_flow import person, plugged, search


async def test_a_profile_that_is_cached_on_one_pod_is_fresh_when_another_has_heard_of_its_change(
    real_servers: Real, runner: asyncio.Runner, tmp_path: Path
) -> None:
    given = await real_servers.fresh() | plugged(tmp_path)
    database_url = given.pop("database_url")
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(
                running(lambda _: real_servers.app(settings_for(database_url, **given), clock, sweeping=False))
            )
            for _ in range(2)
        ]
        here = await person(one)
        there = Phone(two)
        there.user_id, there.token = here.user_id, here.token
        await one.quiet()
        for name in ("Ani", "Ani Lestari", "Ani L"):
            await here.ask("PATCH", "/users/me", {"full_name": name})
            await one.quiet()
            # Whichever of the two has heard it; the second reading is out of the cache.
            for _ in range(2):
                assert (await there.ask("GET", "/users/me/profile"))["full_name"] == name
                assert (await here.ask("GET", "/users/me/profile"))["full_name"] == name


async def test_the_command_builds_the_search_anew_and_counts(embedded: Backend, tmp_path: Path) -> None:
    async with embedded.own_world(**plugged(tmp_path)) as world:
        people = [await person(world) for _ in range(3)]
        for one in people:
            await one.ask("PATCH", "/users/me", {"full_name": "Made"})
        await world.quiet()
        where = ["--url", world.url, "--api-key", world.app.settings.admin.api_key]
        rebuild = ["search", "rebuild", "--step", "2", *where]
        done = await asyncio.to_thread(CliRunner().invoke, cli, rebuild)
        assert done.exit_code == 0, done.output
        assert "3 accounts indexed, 0 entries removed" in done.output
        counted = await asyncio.to_thread(CliRunner().invoke, cli, [*rebuild, "--json"])
        assert json.loads(counted.stdout) == {"indexed": 3, "removed": 0}
        assert sorted(await search(world, "made")) == sorted(one.user_id for one in people)
