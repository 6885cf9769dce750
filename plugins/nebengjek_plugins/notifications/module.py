"""The table of contents of notifications: ``notifications`` decides, ``notifications.email`` sends."""

from collections.abc import Sequence

from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import Retention, StreamSpec
from nebengjek.clock import Clock
from nebengjek.contracts.rides import RideCompleted
from nebengjek.contracts.users import UserCreated, UserDriverRegistered, UserUpdated
from nebengjek.database import Database
from nebengjek.faststate import FastState
from nebengjek.module import Module, SmsQueue, SmsSender, every, on
from nebengjek_plugins.notifications.contracts import EmailWanted, SmsWanted
from nebengjek_plugins.notifications.mail import ConsoleMail, SmtpMail
from nebengjek_plugins.notifications.migrations import HISTORY
from nebengjek_plugins.notifications.service import Notifications
from nebengjek_plugins.notifications.settings import NotificationsSettings
from nebengjek_plugins.notifications.texts import Texts

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


def notifications(
    bus: MessageBus,
    database: Database,
    clock: Clock,
    state: FastState,
    sms: SmsSender,
    otp_ttl: float,
    settings: NotificationsSettings,
) -> Sequence[Module]:
    """A welcome when the first address is known, a receipt after each ride, by mail; one-time codes by SMS."""
    mailer = ConsoleMail() if settings.smtp_url is None else SmtpMail(settings.smtp_url, timeout=settings.timeout)
    texts = Texts(bus, state, clock, sms, life=otp_ttl)
    service = Notifications(bus, database, clock, mailer, settings)
    return [
        Module(
            name="notifications",
            streams=[STREAM],
            history=HISTORY,
            says=[EmailWanted, SmsWanted],
            sms=SmsQueue(sender=texts, event=SmsWanted),
            hears=[
                on(UserCreated, service.known),
                on(UserUpdated, service.known),
                on(UserDriverRegistered, service.known),
                on(RideCompleted, service.completed),
            ],
            sweeps=[every(3600.0, service.forget_old)],
        ),
        Module(
            name="notifications.email",
            hears=[on(EmailWanted, service.email, max_deliver=settings.tries, max_ack_pending=256)],
        ),
        Module(
            name="notifications.sms",
            # As often as fits into a code's life; then it is refused as out of date.
            hears=[on(SmsWanted, texts.carry, max_deliver=20, max_ack_pending=256)],
        ),
    ]
