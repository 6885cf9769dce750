"""What waits to be sent: each for one of the senders."""

from datetime import datetime
from typing import ClassVar, Literal

from nebengjek.contracts.message import Event

Language = Literal["id", "en"]
MailKind = Literal["welcome", "receipt"]
PushKind = Literal[
    "offer_to_driver",
    "offer_to_passenger",
    "search_ended",
    "driver_on_the_way",
    "ride_cancelled",
    "payment_due",
    "payment_refused",
    "payment_overdue",
]


class EmailWanted(Event, frozen=True, kw_only=True, tag="notification.email"):
    """A mail to a user. ``cause``: what it is about, so that there is one of it; ``values`` fill the template.

    Its number is not the cause: what was put off is wanted again, and must not be taken for the same message.
    """

    user_id: str
    cause: str
    kind: MailKind
    language: Language
    to: str
    values: dict[str, str]
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = None
    sensitive: ClassVar[bool] = True


class SmsWanted(Event, frozen=True, kw_only=True, tag="notification.sms"):
    """A one-time code on its way to a phone.

    Number and text are neither here nor in a dead letter: they lie in the fast state under ``sms_id``, sealed with
    ``seal`` (base64), for as long as the code lives. Only both together can be read.
    """

    sms_id: str
    seal: str
    expires_at: datetime
    key: ClassVar[str] = "sms_id"
    number: ClassVar[str | None] = None
    sensitive: ClassVar[bool] = True


class PushWanted(Event, frozen=True, kw_only=True, tag="notification.push"):
    """News for one device of a user; of no use after ``expires_at``. ``push_id``: cause and device.

    ``data``: what the app on the phone reads, the event and the id of what it is about.
    """

    user_id: str
    push_id: str
    device_id: str
    topic: str
    kind: PushKind
    language: Language
    values: dict[str, str]
    data: dict[str, str]
    expires_at: datetime
    urgent: bool
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = "push_id"
    sensitive: ClassVar[bool] = True
