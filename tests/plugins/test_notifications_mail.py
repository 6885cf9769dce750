"""Mails: the welcome once, the receipt with every term, and a mail server in every mood; over real SMTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast

import pytest
from aiosmtpd.smtp import SMTP, Envelope
from msgspec import structs
from sqlalchemy import delete, update

from nebengjek.bus.handling import Reject
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.users import UserUpdated
from nebengjek.users.store import users
from nebengjek_plugins.notifications.mail import compose
from nebengjek_plugins.notifications.tables import contacts, notices
from tests.flows.conftest import Backend
from tests.flows.world import Phone, World

WAIT = 60.0


class Post:
    """A mail server: what it took, and what it says to the next ones."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.answers: list[str] = []
        self.refusing = ""
        self.asked = 0
        self.url = ""
        self.came = asyncio.Event()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: Any) -> str:  # noqa: N802 - its name there
        self.asked += 1
        if self.refusing:
            return self.refusing
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802 - its name there
        content = cast(bytes, envelope.content)
        self.mails.append(message_from_bytes(content, policy=policy.default))
        self.came.set()
        return "250 taken"


@asynccontextmanager
async def post_office(post: Post | None = None) -> AsyncIterator[Post]:
    post = post or Post()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(post, loop=loop, hostname="post"), "127.0.0.1", 0)
    post.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield post
    finally:
        server.close()


def plugged(post: Post, **values: Any) -> dict[str, Any]:
    # No test waits for a morning, unless it is about one.
    table = {"smtp_url": post.url, "quiet_from": "00:00", "quiet_until": "00:00", **values}
    return {
        "plugins": ["nebengjek_plugins.notifications:notifications"],
        "plugin": {"notifications": table},
    }


async def letters(world: World) -> list[dict[str, Any]]:
    key = {"X-API-Key": world.app.settings.admin.api_key}
    items: list[dict[str, Any]] = (await world.http.get("/admin/dead-letters", headers=key)).json()["items"]
    return items


async def dead(world: World) -> dict[str, Any]:
    """The first dead letter; waits for it."""
    async with asyncio.timeout(WAIT):
        while not (found := await letters(world)):  # noqa: ASYNC110 - they are asked, they do not tell
            await asyncio.sleep(0.05)
    return found[0]


async def test_the_welcome_comes_once_when_the_first_address_is_known(backend: Backend) -> None:
    async with post_office() as post, backend.own_world(**plugged(post)) as world:
        ani = await Phone(world).login()
        await world.quiet()
        assert post.mails == []
        await ani.ask("PATCH", "/users/me", {"full_name": "Ani"})
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        await world.quiet()
        (mail,) = post.mails
        assert (mail["To"], mail["Subject"]) == ("ani@example.org", "Selamat datang di NebengJek")
        assert "Halo Ani," in mail.get_content()
        await ani.ask("PATCH", "/users/me", {"email": None})
        await ani.ask("PATCH", "/users/me", {"email": "other@example.org"})
        await world.quiet()
        handler = world.handler("notifications", UserUpdated)
        changed = UserUpdated(user_id=ani.user_id, version=99, full_name="Ani", email="x@example.org", role="passenger")
        said = structs.replace(changed, changed=("email",))
        # As pods that have the same in hand at once.
        await asyncio.gather(handler(said), handler(said))
        await world.quiet()
        assert len(post.mails) == 1
        budi = structs.replace(said, user_id=uuid7())
        news = [structs.replace(budi, version=version) for version in (2, 1, 2, 3, 3)]
        await asyncio.gather(*(handler(one) for one in news))
        await world.quiet()
        assert len(post.mails) == 2
        # Who had an address before anything was heard of him is no newcomer.
        await handler(structs.replace(changed, user_id=uuid7(), changed=("full_name",)))
        await world.quiet()
        assert len(post.mails) == 2


async def test_both_get_a_receipt_with_every_term_of_the_fare(backend: Backend) -> None:
    async with post_office() as post, backend.own_world(**plugged(post, language="en")) as world:
        budi, ani = await world.driver(), await world.passenger()
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org", "full_name": "Ani"})
        await budi.ask("PATCH", "/users/me", {"email": "budi@example.org"})
        await world.quiet()
        async with world.app.database.begin() as tx:
            # Nothing was ever heard of her: her account is older than the plugin.
            await tx.execute(delete(contacts).where(contacts.c.user_id == ani.user_id))
            await tx.execute(delete(notices).where(notices.c.user_id == ani.user_id))
            await tx.execute(
                update(users).where(users.c.id == ani.user_id).values(created_at=datetime(2020, 1, 1, tzinfo=UTC))
            )
        post.mails.clear()
        ride_id = await world.start_ride(budi, ani)
        await world.drive(budi, 2000)
        bill = await budi.say("ride.arrive", {"ride_id": ride_id, "adjustment_factor": 0.5})
        await ani.say("ride.pay", {"ride_id": ride_id, "amount": bill["adjusted_cost"]})
        await ani.expect("ride.completed", ride_id=ride_id)
        await world.quiet()
        await ani.ask("PATCH", "/users/me", {"full_name": "Ani A."})
        await world.quiet()
        # Nobody who was there long before is welcomed.
        receipts = post.mails
        assert sorted(mail["To"] for mail in receipts) == ["ani@example.org", "budi@example.org"]
        text = receipts[0].get_content()
        for amount in (bill["total_cost"], bill["adjusted_cost"], bill["admin_fee"], bill["driver_payout"]):
            assert "Rp " + f"{amount:,}".replace(",", ".") in text, text
        assert "Adjustment factor: 0.5" in text
        assert "ACCEPTED" in text


async def test_a_mail_that_cannot_be_sent_is_tried_again_dies_and_is_sent_once_when_replayed(backend: Backend) -> None:
    async with post_office() as post, backend.own_world(**plugged(post, tries=2)) as world:
        post.refusing = "451 come back later"
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        letter = await dead(world)
        assert letter["consumer"] == "notification_email_notifications_email"
        assert (post.asked, post.mails) == (2, [])
        post.refusing = ""
        key = {"X-API-Key": world.app.settings.admin.api_key}
        again = f"/admin/dead-letters/{letter['seq']}/replay"
        answers = await asyncio.gather(*(world.http.post(again, headers=key) for _ in range(3)))
        assert sorted(answer.status_code for answer in answers) == [200, 404, 404]
        async with asyncio.timeout(WAIT):
            await post.came.wait()
        await world.quiet()
        assert [mail["To"] for mail in post.mails] == ["ani@example.org"]
        assert "ani@example.org" not in str(letter["error"])


async def test_an_address_that_is_refused_for_good_is_not_tried_again(backend: Backend) -> None:
    async with post_office() as post, backend.own_world(**plugged(post)) as world:
        post.refusing = "550 no such mailbox"
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me", {"email": "nobody@example.org"})
        assert (await dead(world))["consumer"] == "notification_email_notifications_email"
        await world.quiet()
        assert (post.asked, post.mails) == (1, [])


async def test_without_a_server_nothing_is_sent_and_nothing_waits(embedded: Backend) -> None:
    table = {"notifications": {"quiet_from": "00:00", "quiet_until": "00:00"}}
    plugins = ["nebengjek_plugins.notifications:notifications"]
    async with embedded.own_world(plugins=plugins, plugin=table) as world:
        ani = await Phone(world).login()
        await ani.ask("PATCH", "/users/me", {"email": "ani@example.org"})
        await world.quiet()
        assert await letters(world) == []


@pytest.mark.parametrize("to", ["", "a", "a@b@c", "a b@c.d", "a@b.c\r\nBcc: x@y.z", "<a@b.c>, d@e.f"])
def test_what_is_no_address_is_refused(to: str) -> None:
    with pytest.raises(Reject):
        compose(sender="us@example.org", to=to, subject="s", text="t", message_id="m")
