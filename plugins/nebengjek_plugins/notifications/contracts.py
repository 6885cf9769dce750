"""What waits to be sent: each for one of the senders."""

from datetime import datetime
from typing import ClassVar, Literal

from nebengjek.contracts.message import Event

Kind = Literal["welcome", "receipt"]


class EmailWanted(Event, frozen=True, kw_only=True, tag="notification.email"):
    """A mail to a user. ``cause``: what it is about, so that there is one of it; ``values`` fill the template."""

    user_id: str
    cause: str
    kind: Kind
    language: Literal["id", "en"]
    to: str
    values: dict[str, str]
    key: ClassVar[str] = "user_id"
    number: ClassVar[str | None] = "cause"
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
