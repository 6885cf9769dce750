"""Who is to be told what: once for each cause, whatever comes twice; and the sending itself.

What is wanted is written with its event in one transaction. News for who sleeps are written without one, and wanted in
the morning: waiting in the queue they would take the places of mails that need not wait. What was sent is noted after
the server took it: killed in between, the same mail goes again, with the same Message-ID.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.rides import RideCompleted
from nebengjek.contracts.users import AccountsOf, UserCreated, UserDriverRegistered, UserUpdated
from nebengjek.database import Database, insert_ignore
from nebengjek_plugins.notifications.contracts import EmailWanted, Language, MailKind
from nebengjek_plugins.notifications.devices import Devices
from nebengjek_plugins.notifications.mail import Mailer, compose
from nebengjek_plugins.notifications.settings import NotificationsSettings
from nebengjek_plugins.notifications.tables import contacts, notices
from nebengjek_plugins.notifications.templates import receipt_values, rendered
from nebengjek_plugins.notifications.wishes import WishBook, Wishes, silence

_KEPT = timedelta(days=90)
_NEW = timedelta(days=1)
"""So long after his login who is met for the first time is welcomed; the stream keeps what was said for as long."""
AT_ONCE = 100
"""So many are woken in one round: a whole night's news would hold up the morning's receipts."""
WELCOME = "welcome"


class Notifications:
    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        clock: Clock,
        mailer: Mailer,
        book: WishBook,
        devices: Devices,
        settings: NotificationsSettings,
    ) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock
        self._mailer = mailer
        self._book = book
        self._devices = devices
        self._settings = settings

    # -- who is told what

    async def known(self, event: UserCreated | UserUpdated | UserDriverRegistered) -> None:
        """Remember where he is reached; welcome him when that is known for the first time."""
        if isinstance(event, UserDriverRegistered):
            await self._meet([event.user_id])  # it does not say for how long he has been here
        async with self._database.begin() as tx:
            row = {"user_id": event.user_id, "version": 0, "deleted": False}
            is_new = await insert_ignore(tx, contacts, row)
            if is_new and isinstance(event, UserUpdated) and event.email and "email" not in event.changed:
                # His address is older than what is heard here: so is he.
                await self._welcomed(tx, event.user_id)
            mine = contacts.c.user_id == event.user_id
            newer = update(contacts).where(mine, contacts.c.version < event.version, contacts.c.deleted.is_(False))
            values: dict[str, Any] = {
                "version": event.version,
                "full_name": event.full_name,
                "email": event.email,
            }
            if isinstance(event, UserUpdated) and event.deleted:
                values["deleted"] = True
            contact = (await tx.execute(newer.values(**values).returning(contacts))).first()
            if contact is not None:
                if contact.deleted:
                    await self._book.forget(tx, contact.user_id)
                    await self._devices.forget(tx, contact.user_id)
                await self._want(tx, contact, WELCOME, "welcome", {})

    async def _welcomed(self, tx: AsyncConnection, user_id: str) -> None:
        now = self._clock.now()
        await insert_ignore(tx, notices, {"user_id": user_id, "cause": WELCOME, "created_at": now, "sent_at": now})

    async def _meet(self, user_ids: Sequence[str]) -> None:
        """Ask where those are reached of whom nothing was heard: their accounts are older than the plugin."""
        async with self._database.read() as tx:
            known = (await tx.execute(select(contacts.c.user_id).where(contacts.c.user_id.in_(user_ids)))).scalars()
            strangers = tuple(set(user_ids) - set(known))
        if not strangers:
            return
        accounts = (await self._bus.request(AccountsOf(user_ids=strangers))).items
        async with self._database.begin() as tx:
            for account in accounts:
                row = {"user_id": account.user_id, "version": account.version, "deleted": False}
                row |= {"email": account.email, "full_name": account.full_name}
                if await insert_ignore(tx, contacts, row):
                    if account.created_at < self._clock.now() - _NEW:
                        await self._welcomed(tx, account.user_id)
                    else:
                        contact = await tx.execute(select(contacts).where(contacts.c.user_id == account.user_id))
                        await self._want(tx, contact.one(), WELCOME, "welcome", {})

    async def completed(self, event: RideCompleted) -> None:
        """A receipt for both, as far as they have an address. Raises Unavailable, RemoteError."""
        values = receipt_values(event.ride)
        people = [event.passenger_id, event.driver_id]
        await self._meet(people)
        async with self._database.begin() as tx:
            for contact in (await tx.execute(select(contacts).where(contacts.c.user_id.in_(people)))).all():
                await self._want(tx, contact, f"receipt-{event.ride_id}", "receipt", values)

    async def _want(
        self, tx: AsyncConnection, contact: Row[Any], cause: str, kind: MailKind, values: dict[str, str]
    ) -> None:
        if contact.email is None or contact.deleted:
            return
        wished = await self._book.among(tx, contact.user_id)
        due_at = self._morning(kind, wished)
        row = {"user_id": contact.user_id, "cause": cause, "created_at": self._clock.now(), "due_at": due_at}
        if await insert_ignore(tx, notices, row) and due_at is None:
            await self._bus.outbox.add(tx, _mail(contact, cause, kind, wished.language, values))

    def _morning(self, kind: MailKind, wished: Wishes) -> datetime | None:
        """Until when it has to wait; None: it has not."""
        now = self._clock.now()
        seconds = silence(wished, now) if kind == "welcome" else 0.0
        return now + timedelta(seconds=seconds) if seconds else None

    async def wake(self) -> int:
        """Want what has waited for its morning, to where he is reached by now; return how many."""
        now = self._clock.now()
        waiting = select(notices).where(notices.c.due_at <= now).order_by(notices.c.due_at, notices.c.user_id)
        async with self._database.read() as tx:
            due = (await tx.execute(waiting.limit(AT_ONCE))).all()
        for row in due:
            await self._wake(row.user_id, row.cause, now)
        return len(due)

    async def _wake(self, user_id: str, cause: str, now: datetime) -> None:
        mine = (notices.c.user_id == user_id) & (notices.c.cause == cause) & (notices.c.due_at <= now)
        async with self._database.begin() as tx:
            if not (await tx.execute(update(notices).where(mine).values(due_at=None))).rowcount:
                return  # another pod was first
            contact = (await tx.execute(select(contacts).where(contacts.c.user_id == user_id))).one()
            if contact.email is None:
                # Told nowhere, he is still to be told: when he has an address again.
                await tx.execute(delete(notices).where(notices.c.user_id == user_id, notices.c.cause == cause))
                return
            language = (await self._book.among(tx, user_id)).language
            await self._bus.outbox.add(tx, _mail(contact, cause, "welcome", language, {}))

    # -- sending

    async def email(self, event: EmailWanted) -> None:
        """Raises MailFailed, Reject. News for who sleeps by now are put off."""
        mine = (notices.c.user_id == event.user_id) & (notices.c.cause == event.cause)
        async with self._database.read() as tx:
            sent = (await tx.execute(select(notices.c.sent_at).where(mine))).scalar()
            left = (await tx.execute(select(contacts.c.deleted).where(contacts.c.user_id == event.user_id))).scalar()
            wished = await self._book.among(tx, event.user_id)
        if sent is not None or left:
            return
        is_news = event.kind == "welcome"
        if is_news and not wished.news:
            return
        if (due_at := self._morning(event.kind, wished)) is not None:
            async with self._database.begin() as tx:
                await tx.execute(update(notices).where(mine, notices.c.sent_at.is_(None)).values(due_at=due_at))
            return
        subject, text = rendered(event.kind, event.language, event.values)
        message_id = f"{event.user_id}.{event.cause}"
        await self._mailer.send(
            compose(
                sender=self._settings.sender,
                to=event.to,
                subject=subject,
                text=text,
                message_id=message_id,
                unsubscribe=self._link(event.user_id) if is_news else None,
            )
        )
        async with self._database.begin() as tx:
            await tx.execute(update(notices).where(mine).values(sent_at=self._clock.now()))

    def _link(self, user_id: str) -> str | None:
        where = self._settings.public_url
        return None if where is None else f"{where}/notifications/unsubscribe/{self._book.ticket(user_id)}"

    async def forget_old(self) -> None:
        """Receipts are remembered for as long as their events may come again; a welcome for ever."""
        old = (notices.c.created_at < self._clock.now() - _KEPT) & (notices.c.cause != WELCOME)
        async with self._database.begin() as tx:
            await tx.execute(delete(notices).where(old))


def _mail(contact: Row[Any], cause: str, kind: MailKind, language: Language, values: dict[str, str]) -> EmailWanted:
    return EmailWanted(
        user_id=contact.user_id,
        cause=cause,
        kind=kind,
        language=language,
        to=contact.email,
        values={"name": contact.full_name or "NebengJek", **values},
    )
