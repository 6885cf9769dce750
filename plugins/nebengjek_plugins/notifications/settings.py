"""``[plugin.notifications]`` of the profile."""

from typing import Annotated

from msgspec import Meta, Struct

from nebengjek_plugins.notifications.contracts import Language

HOUR = r"^([01]\d|2[0-3]):[0-5]\d$"
Hour = Annotated[str, Meta(pattern=HOUR)]


class NotificationsSettings(Struct, frozen=True, kw_only=True):
    """``smtp_url``: ``smtp://user:password@host:587`` (TLS where offered) or ``smtps://…``; None: into the log.

    ``vapid_key``: the private key of pushes to browsers, 32 bytes in base64url; ``fcm_credentials``: the file of a
    service account. ``push_hosts``: push services that may be called, with all below them; ``http://…`` is one origin.
    ``public_url``: where the unsubscribing of a mail leads, signed with ``secret``.
    """

    smtp_url: Annotated[str, Meta(pattern=r"^smtps?://")] | None = None
    sender: str = "NebengJek <no-reply@nebengjek.example>"
    language: Language = "id"
    timeout: Annotated[float, Meta(gt=0, le=25)] = 20
    """Seconds that the mail server, or a push service, may take."""
    tries: Annotated[int, Meta(ge=2, le=20)] = 5
    quiet_from: Hour = "21:00"
    quiet_until: Hour = "06:00"
    """Of who has not said when he sleeps; the same hour twice: never."""
    public_url: Annotated[str, Meta(pattern=r"^https?://\S+[^/]$")] | None = None
    secret: Annotated[str, Meta(min_length=32)] | None = None
    vapid_key: Annotated[str, Meta(pattern=r"^[\w-]{43}$")] | None = None
    vapid_subject: Annotated[str, Meta(pattern=r"^(mailto:|https://)")] = "mailto:no-reply@nebengjek.example"
    push_hosts: tuple[str, ...] = (
        "fcm.googleapis.com",
        "push.services.mozilla.com",
        "notify.windows.com",
        "push.apple.com",
    )
    fcm_credentials: str | None = None
    fcm_url: str = "https://fcm.googleapis.com"

    def __post_init__(self) -> None:
        if self.public_url is not None and self.secret is None:
            raise ValueError("public_url needs secret, at least 32 characters, which signs the links")
