"""Notifications over HTTP: how one wishes to be told, one's devices, and the link in a mail that ends the news."""

from typing import Annotated

from litestar import Controller, MediaType, Response, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from nebengjek.errors import Invalid
from nebengjek.web import Identity
from nebengjek_plugins.notifications.contracts import Language
from nebengjek_plugins.notifications.devices import Devices, KnownDevice
from nebengjek_plugins.notifications.wishes import WishBook, Wishes, WishesChanged

_Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,128}=*$(?!\n)", max_length=130)]


class BrowserKeys(Struct, frozen=True, kw_only=True):
    p256dh: _Key
    auth: _Key


class Subscription(Struct, frozen=True, kw_only=True):
    """A browser's ``PushSubscription`` as its ``toJSON`` says it, or an app's ``fcm_token``."""

    endpoint: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    keys: BrowserKeys | None = None
    fcm_token: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None


class KnownDevices(Struct, frozen=True, kw_only=True):
    """``vapid_public_key``: what a browser subscribes with (``applicationServerKey``); null: none is pushed to."""

    items: list[KnownDevice]
    vapid_public_key: str | None


class NotificationsController(Controller):
    path = ""
    tags = ["notifications"]
    book: WishBook
    devices: Devices
    vapid_public_key: str | None

    @get("/users/me/notifications")
    async def wishes(self, user: NamedDependency[Identity]) -> Wishes:
        """How you wish to be told."""
        return await self.book.of(user.user_id)

    @patch("/users/me/notifications")
    async def change(self, user: NamedDependency[Identity], data: JSONBody[WishesChanged]) -> Wishes:
        """Change how you wish to be told; receipts and codes come whatever you say."""
        return await self.book.change(user.user_id, data)

    @get("/users/me/push-subscriptions")
    async def known(self, user: NamedDependency[Identity]) -> KnownDevices:
        """Your devices that are pushed to, newest first."""
        return KnownDevices(items=await self.devices.of(user.user_id), vapid_public_key=self.vapid_public_key)

    @put("/users/me/push-subscriptions")
    async def keep(self, user: NamedDependency[Identity], data: JSONBody[Subscription]) -> KnownDevice:
        """Push to this device, too; the same again changes nothing but its keys."""
        if data.fcm_token is not None and data.endpoint is None:
            return await self.devices.keep_app(user.user_id, data.fcm_token)
        if data.endpoint is None or data.keys is None or data.fcm_token is not None:
            raise Invalid("expected endpoint and keys, or fcm_token")
        return await self.devices.keep_browser(user.user_id, data.endpoint, data.keys.p256dh, data.keys.auth)

    @delete("/users/me/push-subscriptions/{device_id:str}")
    async def remove(self, user: NamedDependency[Identity], device_id: FromPath[str]) -> None:
        """Push to this device no longer."""
        await self.devices.remove(user.user_id, device_id)

    @get("/notifications/unsubscribe/{ticket:str}", opt={"public": True}, media_type=MediaType.HTML)
    async def ask(self, ticket: FromPath[str]) -> str:
        """The page behind the link in a mail. It changes nothing yet: programs that look at mails follow links."""
        wished = await self.book.of(self.book.holder(ticket))
        return _page(wished.language, done=False)

    @post("/notifications/unsubscribe/{ticket:str}", opt={"public": True}, status_code=200)
    async def unsubscribe(self, ticket: FromPath[str]) -> Response[str]:
        """No news any more: one click on the page or in a mail program (RFC 8058). Receipts still come."""
        wished = await self.book.of(self.book.holder(ticket))
        await self.book.unsubscribe(ticket)
        return Response(_page(wished.language, done=True), media_type=MediaType.HTML)


_WORDS: dict[Language, tuple[str, str, str]] = {
    "id": (
        "Berhenti menerima kabar dari NebengJek? Kuitansi perjalanan tetap dikirim.",
        "Berhenti berlangganan",
        "Anda tidak akan menerima kabar lagi. Kuitansi perjalanan tetap dikirim.",
    ),
    "en": (
        "No more news from NebengJek? Receipts of your rides still come.",
        "Unsubscribe",
        "You will get no more news. Receipts of your rides still come.",
    ),
}


def _page(language: Language, *, done: bool) -> str:
    question, button, answer = _WORDS[language]
    inside = f"<p>{answer}</p>" if done else f'<p>{question}</p><form method="post"><button>{button}</button></form>'
    return f'<!doctype html><html lang="{language}"><meta charset="utf-8"><title>NebengJek</title>{inside}</html>'
