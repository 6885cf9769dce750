"""``[plugin.notifications]`` of the profile."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Language = Literal["id", "en"]


class NotificationsSettings(Struct, frozen=True, kw_only=True):
    """``smtp_url``: ``smtp://user:password@host:587`` (TLS where offered) or ``smtps://…``; None: into the log."""

    smtp_url: Annotated[str, Meta(pattern=r"^smtps?://")] | None = None
    sender: str = "NebengJek <no-reply@nebengjek.example>"
    language: Language = "id"
    timeout: Annotated[float, Meta(gt=0, le=25)] = 20
    """Seconds that the mail server may take."""
    tries: Annotated[int, Meta(ge=1, le=20)] = 5
