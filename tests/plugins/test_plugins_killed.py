"""What follows from an account happens although the process is killed between any two steps (mails, pictures, search).

Each play has a new account, an address and a picture; the process dies at one moment of it and starts again. Of the
moments a sample is taken, always the same one; ``KILLS=200`` takes so many, ``KILLS=all`` every one.
"""

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from nebengjek_plugins.notifications.tables import notices
from nebengjek_plugins.profiles.routes import ProfilesController
from nebengjek_plugins.profiles.tables import found, people, pictures, signups
from tests.flows.lives import Faults, InProcess, Town, leave_the_dead, watching
from tests.flows.world import settings_for
from tests.plugins.images import picture
from tests.plugins.test_notifications_mail import Post, plugged, post_office

KILLS = os.environ.get("KILLS", "")
SAMPLE = 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A death leaves many tracebacks."""
    with capture_logs():
        yield


class Stage:
    """Plays, each on a database and a folder of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        self._folder = folder
        self._template = template

    async def play(self, name: str, fatal: Sequence[int] = ()) -> tuple[Faults, list[EmailMessage]]:
        """With the process dying at these moments; everything that follows has happened. The mails that came."""
        folder = self._folder / name
        folder.mkdir()
        path = folder / "town.sqlite3"
        shutil.copy(self._template, path)
        asyncio.get_running_loop().set_exception_handler(leave_the_dead)
        faults = Faults(fatal)
        async with post_office() as post:
            values = plugged(post)
            values["plugins"] = ["nebengjek_plugins.profiles:profiles", *values["plugins"]]
            values["plugin"]["profiles"] = {"store": str(folder / "store")}
            town = Town(settings_for(f"sqlite:///{path}", **values), faults, InProcess())
            try:
                await town.rise()
                await settle(town, post)
                with watching():
                    assert town.probe.dead == []
                    await check(town, folder / "store")
                await town.end()
            except BaseException as error:
                error.add_note(f"killed at {', '.join(faults.deaths)}")
                raise
        return faults, post.mails


@pytest.fixture
def stage(tmp_path: Path, sqlite_template: Path) -> Stage:
    return Stage(tmp_path, sqlite_template)


async def settle(town: Town, post: Post) -> None:
    """An account, its address, two pictures; until nothing happens any more."""
    ani = await town.passenger()

    async def address() -> None:
        accounts = town.app.modules[0].routes[0].accounts
        await accounts.update(ani.user_id, {"email": "ani@example.org", "full_name": "Ani"})

    async def show(colour: str) -> None:
        await gallery(town).upload(ani.user_id, picture(colour=colour))

    await town.insist(address)
    await town.insist(lambda: show("red"))
    await town.insist(lambda: show("blue"))
    await town.eventually(lambda: post.mails or None)
    # An upload that came to nothing is taken away after an hour.
    await town.pass_by(3700)
    await town.pass_by(61)
    await town.eventually(lambda: True)


def gallery(town: Town) -> Any:
    """The pictures of the present life."""
    routes = [route for module in town.app.modules for route in module.routes]
    (own,) = [route for route in routes if isinstance(route, type) and issubclass(route, ProfilesController)]
    return own.gallery


async def check(town: Town, store: Path) -> None:
    async with town.app.database.read() as tx:
        (person,) = (await tx.execute(select(people))).all()
        (row,) = (await tx.execute(select(found))).all()
        assert (person.full_name, person.email) == (row.full_name, row.email) == ("Ani", "ani@example.org")
        assert len((await tx.execute(select(signups))).all()) == 1
        (notice,) = (await tx.execute(select(notices))).all()
        assert notice.sent_at is not None
        states = Counter((await tx.execute(select(pictures.c.state))).scalars())
        shown = (await tx.execute(select(pictures).where(pictures.c.state == "kept"))).all()
    # The last picture with its thumbnails, and no file of any other.
    assert [one.token for one in shown] == [person.avatar_token]
    assert shown[0].ready
    assert set(states) <= {"kept", "gone"}
    names = ("128", "512", "64", "original")
    assert files_in(store) == [f"avatars/{person.avatar_token}/{name}.webp" for name in names]


def files_in(store: Path) -> list[str]:
    return sorted(file.relative_to(store).as_posix() for file in store.rglob("*.webp"))


async def test_what_follows_from_an_account_happens_whenever_the_process_is_killed(stage: Stage) -> None:
    faults, mails = await stage.play("whole")
    assert len(mails) == 1
    number = faults.moments if KILLS == "all" else min(faults.moments, int(KILLS or SAMPLE))
    chosen = sorted(random.Random(1).sample(range(1, faults.moments + 1), number))
    died = 0
    for moment in chosen:
        play, mails = await stage.play(str(moment), [moment])
        died += len(play.deaths)
        # Killed after the server took the mail and before that was noted, it is sent again: the same mail.
        assert 1 <= len(mails) <= 1 + len(play.deaths)
        assert len({mail["Message-ID"] for mail in mails}) == 1
    assert died > len(chosen) // 2
    print(f"killed at {died} of {faults.moments} moments")  # noqa: T201 - the report
