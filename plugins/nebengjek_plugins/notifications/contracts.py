"""What waits to be sent: each for one of the senders."""

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
