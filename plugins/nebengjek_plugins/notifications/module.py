"""The table of contents of notifications: ``notifications`` decides, ``notifications.email`` sends."""

from collections.abc import Sequence

from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import Retention, StreamSpec
from nebengjek.clock import Clock
from nebengjek.contracts.rides import RideCompleted
from nebengjek.contracts.users import UserCreated, UserDriverRegistered, UserUpdated
from nebengjek.database import Database
from nebengjek.module import Module, every, on
from nebengjek_plugins.notifications.contracts import EmailWanted
from nebengjek_plugins.notifications.mail import ConsoleMail, SmtpMail
from nebengjek_plugins.notifications.migrations import HISTORY
from nebengjek_plugins.notifications.service import Notifications
from nebengjek_plugins.notifications.settings import NotificationsSettings

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
    bus: MessageBus, database: Database, clock: Clock, settings: NotificationsSettings
) -> Sequence[Module]:
    """A welcome when the first address is known, a receipt after each ride; by mail."""
    mailer = ConsoleMail() if settings.smtp_url is None else SmtpMail(settings.smtp_url, timeout=settings.timeout)
    service = Notifications(bus, database, clock, mailer, settings)
    return [
        Module(
            name="notifications",
            streams=[STREAM],
            history=HISTORY,
            says=[EmailWanted],
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
    ]
