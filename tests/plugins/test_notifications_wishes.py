"""How people wish to be told: the night, the language, the end of the news; and a mail server that is slow or gone."""

import asyncio
from datetime import UTC, datetime
from string import Template
from typing import Any, cast, get_args

import pytest
from sqlalchemy import select

from nebengjek.database import Database
from nebengjek.errors import NotFound
from nebengjek_plugins.notifications.contracts import EmailWanted, Language, MailKind, PushKind
from nebengjek_plugins.notifications.settings import NotificationsSettings
from nebengjek_plugins.notifications.tables import wishes as kept
from nebengjek_plugins.notifications.templates import TEXTS
from nebengjek_plugins.notifications.wishes import WishBook, Wishes, silence
from tests.flows.conftest import Backend
from tests.flows.world import Phone, World
from tests.plugins.test_notifications_mail import Post, dead, letters, plugged, post_office
from tests.plugins.test_notifications_sms import code_for, gateway

WAIT = 60.0


def wished(zone: Any = "WIB", begin: str | None = "21:00", end: str | None = "06:00") -> Wishes:
    return Wishes(language="id", news=True, push=True, zone=zone, quiet_from=begin, quiet_until=end)


@pytest.mark.parametrize(
    ("hour", "wishes", "hours"),
    [
        (14, wished(), 9),  # 21:00 in Jakarta
        (13, wished(), 0),
        (13, wished("WITA"), 9),
        (12, wished("WIT"), 9),
        (22, wished(), 1),  # 05:00
        (23, wished(), 0),
        (6, wished(begin="13:00", end="15:00"), 2),
        (8, wished(begin="13:00", end="15:00"), 0),
        (17, wished(begin="00:00", end="00:00"), 0),
        (17, wished(begin=None, end=None), 0),
    ],
)
def test_the_night_ends_in_the_morning_of_where_one_is(hour: int, wishes: Wishes, hours: int) -> None:
    assert silence(wishes, datetime(2026, 11, 21, hour, tzinfo=UTC)) == hours * 3600


def test_each_text_is_there_in_both_languages_with_the_same_values() -> None:
    kinds = {*get_args(MailKind), *get_args(PushKind)}
    assert set(TEXTS) == {(kind, language) for kind in kinds for language in get_args(Language)}
    for kind in kinds:
        in_words = [
            [Template(part).get_identifiers() for part in TEXTS[kind, language]] for language in get_args(Language)
        ]
        assert [set(part) for part in in_words[0]] == [set(part) for part in in_words[1]], kind


def hours_around(world: World) -> dict[str, str]:
    """Quiet hours (WIB) in which it is now, and for three hours more."""
    hour = (world.clock.now().hour + 7) % 24
    return {"quiet_from": f"{hour:02d}:00", "quiet_until": f"{(hour + 4) % 24:02d}:00"}


async def test_news_wait_for_the_morning_over_a_restart_and_hold_nothing_up(backend: Backend) -> None:
    async with post_office() as post, backend.own_world(**plugged(post)) as world:
        ani = await Phone(world).login()
        hours = await ani.ask("PATCH", "/users/me/notifications", hours_around(world))
        assert hours["zone"] == "WIB"
        await ani.ask("PATCH", "/users/me", {"email": "old@example.org"})
        # Nothing waits in the queue, where thousands would take all places.
        await world.quiet()
        news = EmailWanted(
            user_id=ani.user_id, cause="welcome", kind="welcome", language="id", to="old@example.org", values={}
        )
        receipt = EmailWanted(
            user_id=ani.user_id,
            cause="receipt-1",
            kind="receipt",
            language="en",
            to="old@example.org",
            values=dict.fromkeys(
                ("name", "ride_id", "distance", "total", "factor", "adjusted", "fee", "payout", "payment"), "x"
            ),
        )
        # As after an outage that ends in the night, or a dead letter's replay.
        for mail in (news, receipt):
            await world.app.bus.publish(mail)
        await world.quiet()
        await world.advance(3600)
        await world.quiet()
        assert [mail["Subject"] for mail in post.mails] == ["Receipt of your ride x"]
        await ani.ask("PATCH", "/users/me", {"email": "new@example.org"})
        await world.quiet()
        await world.restart()
        world.clock.advance(3 * 3600)
        # As two pods that look at once.
        await asyncio.gather(world.app.sweep(), world.app.sweep())
        await world.quiet()
        (welcome,) = post.mails[1:]
        assert (welcome["Subject"], welcome["To"]) == ("Selamat datang di NebengJek", "new@example.org")
        await world.advance(24 * 3600)
        await world.quiet()
        assert len(post.mails) == 2


async def test_who_has_no_address_in_the_morning_is_welcomed_when_he_has_one(embedded: Backend) -> None:
    async with post_office() as post, embedded.own_world(**plugged(post)) as world:
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me/notifications", hours_around(world))
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        await ani.ask("PATCH", "/users/me", {"email": None})
        await world.quiet()
        await world.advance(4 * 3600)
        await ani.ask("PATCH", "/users/me", {"email": "new@example.org"})
        await world.quiet()
        assert [mail["To"] for mail in post.mails] == ["new@example.org"]


async def test_one_click_ends_the_news_and_a_look_at_the_page_does_not(backend: Backend) -> None:
    values = {"public_url": "https://nebengjek.example/api", "secret": "s" * 32, "language": "en"}
    async with post_office() as post, backend.own_world(**plugged(post, **values)) as world:
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        await world.quiet()
        (mail,) = post.mails
        assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        link = mail["List-Unsubscribe"].strip("<>").replace("\r\n", "").replace(" ", "")
        assert link.startswith("https://nebengjek.example/api/notifications/unsubscribe/")
        path = link.removeprefix("https://nebengjek.example/api")
        page = await world.http.get(path)
        assert (page.status_code, '<form method="post">' in page.text) == (200, True)
        assert (await ani.ask("GET", "/users/me/notifications"))["news"] is True
        form = {"List-Unsubscribe": "One-Click"}
        # Neither undoes what the other says at the same time.
        clicked, *_ = await asyncio.gather(
            world.http.post(path, data=form),
            *(ani.ask("PATCH", "/users/me/notifications", {"language": "id"}) for _ in range(3)),
        )
        assert clicked.status_code == 200
        after = await ani.ask("GET", "/users/me/notifications")
        assert (after["news"], after["language"]) == (False, "id")
        assert (await world.http.post(path[:-1] + ("0" if path[-1] != "0" else "1"))).status_code == 404
        await ani.ask("DELETE", "/users/me")
        await world.quiet()
        # A link works for ever, but of who has left nothing is kept.
        assert (await world.http.post(path, data=form)).status_code == 200
        async with world.app.database.read() as tx:
            assert (await tx.execute(select(kept))).all() == []


USERS = ("019a0000-0000-7000-8000-000000000001", "019a0000-0000-7000-8000-000000000002")


def book(secret: str | None) -> WishBook:
    return WishBook(cast(Database, None), NotificationsSettings(secret=secret))


def test_a_ticket_is_good_for_one_user_under_one_secret_as_it_is_and_in_no_other_way() -> None:
    ours = book("s" * 32)
    ticket = ours.ticket(USERS[0])
    assert ours.holder(ticket) == USERS[0]
    signature = ticket.partition(".")[2]
    forged = [
        "",
        ".",
        signature,
        f".{signature}",
        f"{USERS[0]}",
        f"{USERS[0]}.",
        f"{USERS[1]}.{signature}",
        f"{USERS[0]}.{signature[:-1]}",
        f"{USERS[0]}.{signature.upper()}",
        f"{USERS[0]}.{signature} ",
        f"{USERS[0]}.{signature}.{signature}",
        f"{USERS[0].upper()}.{signature}",
        f"{USERS[0]}.{'0' * 64}",
        f"{USERS[0]}.\u00e9\ud800",
        book("t" * 32).ticket(USERS[0]),
        book(None).ticket(USERS[0]),
    ]
    for one in forged:
        with pytest.raises(NotFound):
            ours.holder(one)
    with pytest.raises(NotFound):
        book(None).holder(book(None).ticket(USERS[0]))


async def test_who_wants_no_news_is_not_welcomed_and_half_a_night_is_refused(embedded: Backend) -> None:
    async with post_office() as post, embedded.own_world(**plugged(post)) as world:
        ani = await Phone(world).login()
        wishes = await ani.ask("PATCH", "/users/me/notifications", {"news": False, "zone": "WIT"})
        assert (wishes["news"], wishes["zone"], wishes["language"]) == (False, "WIT", "id")
        half = await ani.http("PATCH", "/users/me/notifications", {"quiet_from": None})
        assert half.status_code == 400
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        await world.quiet()
        assert post.mails == []


class Deaf(Post):
    """A mail server that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.answering = asyncio.Event()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802 - its name there
        self.asked += 1
        await self.answering.wait()
        envelope.rcpt_tos.append(address)
        return "250 OK"


async def test_a_slow_mail_server_is_given_up_and_holds_no_code_up(backend: Backend) -> None:
    async with (
        post_office(Deaf()) as post,
        gateway() as sms,
        backend.own_world(**plugged(post, timeout=0.3, tries=2), sms__url=sms.url) as world,
    ):
        assert isinstance(post, Deaf)
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        code = await code_for(world)
        async with asyncio.timeout(WAIT):
            while not any(code in text["text"] for text in sms.texts):  # noqa: ASYNC110 - it is asked, it does not tell
                await asyncio.sleep(0.01)
        assert post.mails == []
        assert (await dead(world))["consumer"] == "notification_email_notifications_email"
        post.answering.set()


async def test_a_mail_server_that_is_gone_costs_one_letter(embedded: Backend) -> None:
    async with post_office() as post:
        nobody = "smtp://127.0.0.1:1"
        async with embedded.own_world(**plugged(post, smtp_url=nobody, tries=2)) as world:
            ani = await Phone(world).login()
            await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
            letter = await dead(world)
            await world.quiet()
            assert len(await letters(world)) == 1
            assert "does not answer" in str(letter["error"])
