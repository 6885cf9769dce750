"""The table of contents of notifications: ``notifications`` decides, ``notifications.email`` sends."""

from collections.abc import Sequence

from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import Retention, StreamSpec
from nebengjek.clock import Clock
from nebengjek.contracts.match import MatchFound, MatchUnavailable
from nebengjek.contracts.rides import RideArrived, RideCancelled, RideCompleted, RidePayment, RidePickup
from nebengjek.contracts.users import AccountsOf, UserCreated, UserDriverRegistered, UserUpdated
from nebengjek.database import Database
from nebengjek.faststate import FastState
from nebengjek.module import Module, SmsQueue, SmsSender, every, on
from nebengjek.realtime.delivery import Delivery
from nebengjek_plugins.notifications.contracts import EmailWanted, PushWanted, SmsWanted
from nebengjek_plugins.notifications.devices import Devices
from nebengjek_plugins.notifications.fcm import FcmPush, read_account
from nebengjek_plugins.notifications.mail import ConsoleMail, SmtpMail
from nebengjek_plugins.notifications.migrations import HISTORY
from nebengjek_plugins.notifications.push import ConsolePush, PushSender, WebPush
from nebengjek_plugins.notifications.routes import NotificationsController
from nebengjek_plugins.notifications.service import Notifications
from nebengjek_plugins.notifications.settings import NotificationsSettings
from nebengjek_plugins.notifications.texts import Texts
from nebengjek_plugins.notifications.wishes import WishBook

STREAM = StreamSpec(
    name="NOTIFICATIONS_STREAM",
    subjects=("notification.email.*", "notification.sms.*", "notification.push.*"),
    retention=Retention.WORKQUEUE,
    max_age=24 * 3600.0,
    max_bytes=100 * 1024 * 1024,
    max_msgs=1_000_000,
    duplicate_window=300.0,
    description="what is to be sent, each for one sender",
)


WAITING = 10_000
"""More than ever wait for their next try: those whose service refuses for a while must not take all places."""


def notifications(
    bus: MessageBus,
    database: Database,
    clock: Clock,
    state: FastState,
    delivery: Delivery,
    sms: SmsSender,
    otp_ttl: float,
    settings: NotificationsSettings,
) -> Sequence[Module]:
    """Mails (a welcome, receipts), one-time codes by SMS, the news of a ride by push."""
    mailer = ConsoleMail() if settings.smtp_url is None else SmtpMail(settings.smtp_url, timeout=settings.timeout)
    texts = Texts(bus, state, clock, sms, life=otp_ttl)
    book = WishBook(database, settings)
    senders: dict[str, PushSender] = {"web": ConsolePush(), "fcm": ConsolePush()}
    public_key = None
    if settings.vapid_key is not None:
        web = WebPush(settings.vapid_key, subject=settings.vapid_subject, clock=clock, timeout=settings.timeout)
        senders["web"], public_key = web, web.public_key
    if settings.fcm_credentials is not None:
        account = read_account(settings.fcm_credentials)
        senders["fcm"] = FcmPush(account, url=settings.fcm_url, clock=clock, timeout=settings.timeout)
    devices = Devices(bus, database, clock, delivery.presence, book, senders, settings.push_hosts)
    service = Notifications(bus, database, clock, mailer, book, devices, settings)
    served = {"book": book, "devices": devices, "vapid_public_key": public_key}
    return [
        Module(
            name="notifications",
            routes=[type("Notifications", (NotificationsController,), served)],
            streams=[STREAM],
            history=HISTORY,
            says=[EmailWanted, SmsWanted, PushWanted],
            asks=[AccountsOf],
            sms=SmsQueue(sender=texts, event=SmsWanted),
            hears=[
                on(UserCreated, service.known),
                on(UserUpdated, service.known),
                on(UserDriverRegistered, service.known),
                on(RideCompleted, service.completed),
                on(MatchFound, devices.found),
                on(MatchUnavailable, devices.unavailable),
                on(RidePickup, devices.pickup),
                on(RideArrived, devices.arrived),
                on(RidePayment, devices.payment),
                on(RideCancelled, devices.cancelled),
            ],
            sweeps=[every(5.0, service.wake), every(3600.0, service.forget_old)],
        ),
        Module(
            name="notifications.email",
            hears=[on(EmailWanted, service.email, max_deliver=settings.tries, max_ack_pending=WAITING)],
        ),
        Module(
            name="notifications.push",
            hears=[on(PushWanted, devices.push, max_deliver=settings.tries, max_ack_pending=WAITING)],
        ),
        Module(
            name="notifications.sms",
            # As often as fits into a code's life; then it is refused as out of date.
            hears=[on(SmsWanted, texts.carry, max_deliver=20, max_ack_pending=WAITING)],
        ),
    ]
