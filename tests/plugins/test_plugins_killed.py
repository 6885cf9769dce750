"""What follows from an account happens although the process is killed between any two steps.

Each play has a one-time code, a new account, an address, a device, pictures and a search in vain;
the process dies at one moment of it and starts again. Of the moments a sample is taken, always the same
one; ``KILLS=200`` takes so many, ``KILLS=all`` every one.
"""

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from nebengjek.app import App
from nebengjek.bus.interface import Broker
from nebengjek.faststate import FastState, MemoryFastState
from nebengjek.settings import Settings
from nebengjek.users.frames import FinderData
from nebengjek.users.routes import AuthController, UsersController
from nebengjek_plugins.notifications.push import padless, point_of
from nebengjek_plugins.notifications.routes import NotificationsController
from nebengjek_plugins.notifications.tables import notices
from nebengjek_plugins.profiles.routes import ProfilesController
from nebengjek_plugins.profiles.tables import found, people, pictures, signups
from tests.flows.lives import (
    Faults,
    InProcess,
    Life,
    OverNats,
    Phone,
    SocketsOnly,
    Town,
    Wires,
    leave_the_dead,
    watching,
)
from tests.flows.world import MONAS, settings_for
from tests.plugins.images import picture
from tests.plugins.test_notifications_mail import Post, plugged, post_office
from tests.plugins.test_notifications_push import SECRET, VAPID, Browser, Service, service
from tests.plugins.test_notifications_sms import Gateway, gateway
from tests.servers import NatsServer, nats_server

R = TypeVar("R")

KILLS = os.environ.get("KILLS", "")
SAMPLE = 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A death leaves many tracebacks."""
    with capture_logs():
        yield


class MortalState:
    """Fast state that outlives the process, as in Redis; its use is a moment before and one after."""

    def __init__(self, behind: FastState, life: Life) -> None:
        self._behind = behind
        self._life = life

    def __getattr__(self, name: str) -> Any:
        given = getattr(self._behind, name)
        if name not in ("get", "put", "take", "delete"):
            return given

        async def use(key: str, *values: Any, **options: Any) -> Any:
            self._life.moment(f"{name} {key[:20]}")
            result = await given(key, *values, **options)
            self._life.moment(f"{name} {key[:20]} done")
            return result

        return use


class TownWithRedis(Town):
    def __init__(self, settings: Settings, faults: Faults, wires: Wires) -> None:
        super().__init__(settings, faults, wires)
        self._state = MemoryFastState(self.clock)

    def process(self, settings: Settings, life: Life, broker: Broker) -> App:
        state = cast(FastState, MortalState(self._state, life))

        class Process(SocketsOnly):
            def _fast_state(self) -> FastState:
                return state

        return Process(settings, clock=self.clock, broker=broker, sweeping=False)


@dataclass
class Outside:
    """Whom mails, texts and pushes are given to; ``browser`` has the one device."""

    post: Post
    sms: Gateway
    pushes: Service
    browser: Browser
    asked: list[str] = field(default_factory=list)
    """The codes that were answered to whoever asked for them."""

    def check(self, deaths: int) -> None:
        """What was taken and not noted by the time of a death comes again, and it is the same."""
        mails, texts = [mail["Message-ID"] for mail in self.post.mails], [text["text"] for text in self.sms.texts]
        assert 1 <= len(mails) <= 1 + deaths
        assert len(set(mails)) == 1
        assert 1 <= len(self.pushes.requests) <= 1 + deaths
        assert len({headers["topic"] for _, headers, _ in self.pushes.requests}) == 1
        assert {one["title"] for one in self.browser.read(self.pushes)} == {"Pencarian selesai"}
        assert max(Counter(texts).values()) <= 1 + deaths
        check_codes(texts, self.asked)


def check_codes(texts: list[str], answered: list[str]) -> None:
    """The last that came is the one that is good; those of answers that were cut off came before it, if at all."""
    assert texts[-1] == f"NebengJek: {answered[-1]}"
    assert [text for text, _ in groupby(texts)] == list(dict.fromkeys(texts))


class Stage:
    """Plays, each on a database and a folder of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        self._folder = folder
        self._template = template

    def empty(self, name: str) -> tuple[Path, str]:
        """A folder, and a database in it."""
        folder = self._folder / name
        folder.mkdir()
        shutil.copy(self._template, folder / "town.sqlite3")
        return folder, f"sqlite:///{folder / 'town.sqlite3'}"

    async def play(self, name: str, fatal: Sequence[int] = ()) -> Faults:
        """With the process dying at these moments; everything that follows has happened."""
        folder, database = self.empty(name)
        asyncio.get_running_loop().set_exception_handler(leave_the_dead)
        faults = Faults(fatal)
        async with post_office() as post, gateway() as sms, service() as pushes:
            values = plugged(post, vapid_key=VAPID, push_hosts=[pushes.origin], **this_hour())
            values["plugins"] = ["nebengjek_plugins.profiles:profiles", *values["plugins"]]
            values["plugin"]["profiles"] = {"store": str(folder / "store")}
            town = TownWithRedis(settings_for(database, **values, sms__url=sms.url), faults, InProcess())
            outside = Outside(post, sms, pushes, Browser(pushes.origin, "ani"))
            try:
                await town.rise()
                await settle(town, outside)
                with watching():
                    assert town.probe.dead == []
                    await check(town, folder / "store")
                    outside.check(len(faults.deaths))
                await town.end()
            except BaseException as error:
                error.add_note(f"killed at {', '.join(faults.deaths)}")
                raise
        return faults


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
def stage(tmp_path: Path, sqlite_template: Path) -> Stage:
    return Stage(tmp_path, sqlite_template)


async def settle(town: Town, outside: Outside) -> None:
    """A code, an account, its address, a device, two pictures, a search that nobody answers; until all is quiet."""
    ani = Phone(town)

    async def address() -> None:
        await route(town, UsersController).accounts.update(
            ani.user_id, {"email": "ani@example.org", "full_name": "Ani"}
        )

    async def device() -> None:
        key, secret = padless(point_of(outside.browser.key)), padless(SECRET)
        address = outside.pushes.origin + outside.browser.path
        await route(town, NotificationsController).devices.keep_browser(ani.user_id, address, key, secret)

    async def show(colour: str) -> None:
        await route(town, ProfilesController).gallery.upload(ani.user_id, picture(colour=colour))

    async def search() -> None:
        data = msgspec.convert({"is_active": True, "location": MONAS, "target_location": MONAS}, FinderData)
        await route(town, UsersController).service.finder(ani.user_id, data)

    while not await code_came(town, outside.sms, outside.asked):
        pass
    for step in (ani.login, address, device, partial(show, "red"), partial(show, "blue"), search):
        await town.insist(step)
    await town.eventually(lambda: True)
    # The quiet hour is over, and the search; an upload that came to nothing is taken away after an hour.
    await town.pass_by(3700)
    await town.pass_by(61)
    await town.eventually(lambda: outside.post.mails or None)
    await town.eventually(lambda: outside.pushes.requests or None)
    await town.eventually(lambda: True)


def this_hour() -> dict[str, str]:
    """Quiet hours, of who has not said when he sleeps: until the next full hour."""
    now = datetime.now(timezone(timedelta(hours=7)))
    return {"quiet_from": f"{now:%H}:00", "quiet_until": f"{now + timedelta(hours=1):%H}:00"}


async def code_came(town: Town, sms: Gateway, answered: list[str], *, queue_lives_on: bool = False) -> bool:
    """Ask for a code; False: the queue that had it died with its process, and he will ask again."""

    async def ask() -> None:
        answered.append(await route(town, AuthController).otp.generate("+6281234567890", "10.0.0.7"))

    await town.insist(ask)
    lives = len(town.faults.deaths)

    def look() -> bool | None:
        if sms.texts and answered[-1] in sms.texts[-1]["text"]:
            return True
        return False if len(town.faults.deaths) > lives and not queue_lives_on else None

    return await town.eventually(look)


def route(town: Town, kind: type[R]) -> R:
    """A controller of the present life: what its routes use, without HTTP."""
    routes = [route for module in town.app.modules for route in module.routes]
    return next(cast(R, route) for route in routes if isinstance(route, type) and issubclass(route, kind))


async def check(town: Town, store: Path) -> None:
    async with town.app.database.read() as tx:
        (person,) = (await tx.execute(select(people))).all()
        (row,) = (await tx.execute(select(found))).all()
        assert (person.full_name, person.email) == (row.full_name, row.email) == ("Ani", "ani@example.org")
        assert len((await tx.execute(select(signups))).all()) == 1
        told = dict((await tx.execute(select(notices.c.cause, notices.c.sent_at))).all())
        assert told.pop("welcome") is not None
        assert len(told) == 1
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
    moments = (await stage.play("whole")).moments
    number = moments if KILLS == "all" else min(moments, int(KILLS or SAMPLE))
    chosen = sorted(random.Random(1).sample(range(1, moments + 1), number))
    died = 0
    for moment in chosen:
        died += len((await stage.play(str(moment), [moment])).deaths)
    assert died > len(chosen) // 2
    print(f"killed at {died} of {moments} moments")  # noqa: T201 - the report


@pytest.mark.parametrize("at", ["published notification.sms", "get notifications:sms:", "delete notifications:sms:"])
async def test_a_code_that_nats_has_comes_whenever_the_process_is_killed(
    stage: Stage, nats: NatsServer, at: str
) -> None:
    _, database = stage.empty("codes")
    faults, answered = Faults(at=at), list[str]()
    asyncio.get_running_loop().set_exception_handler(leave_the_dead)
    async with post_office() as post, gateway() as sms:
        town = TownWithRedis(settings_for(database, **plugged(post), sms__url=sms.url), faults, OverNats(nats))
        await town.rise()
        assert await code_came(town, sms, answered, queue_lives_on=True)
        await town.eventually(lambda: True)
        await town.end()
    assert len(faults.deaths) == 1
    assert len(answered) == 1
    check_codes([text["text"] for text in sms.texts], answered)
