"""How a mail leaves: over SMTP, or, where no server is set, as a line in the log."""

from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog

from nebengjek.bus.handling import Reject
from nebengjek.errors import NebengJekError

log = structlog.stdlib.get_logger("nebengjek.notifications")


class MailFailed(NebengJekError):
    """The server is away, slow, or does not want it now; it says why, without the address."""


class Mailer(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Return when the server has taken it. Raises MailFailed; Reject when it never will."""


class ConsoleMail:
    """For development: nothing is sent, and the log does not say to whom."""

    async def send(self, message: EmailMessage) -> None:
        log.info("mail.not_sent", subject=message["Subject"], reason="no smtp_url is set")


class SmtpMail:
    def __init__(self, url: str, *, timeout: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "localhost"
        self._tls = parts.scheme == "smtps"
        self._port = parts.port or (465 if self._tls else 587)
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._timeout = timeout

    async def send(self, message: EmailMessage) -> None:
        try:
            await aiosmtplib.send(
                message,
                hostname=self._host,
                port=self._port,
                username=self._user,
                password=self._password,
                use_tls=self._tls,
                timeout=self._timeout,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [refused.code for refused in error.recipients]
            if all(code >= 500 for code in codes):
                raise Reject(f"the mail server refuses the address for good: {codes}") from None
            raise MailFailed(f"the mail server does not take the address now: {codes}") from None
        except aiosmtplib.SMTPResponseException as error:
            raise MailFailed(f"the mail server says {error.code}") from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailFailed(f"the mail server does not answer ({type(error).__name__})") from None


def compose(
    *, sender: str, to: str, subject: str, text: str, message_id: str, unsubscribe: str | None = None
) -> EmailMessage:
    """``message_id``: the same for the same mail, so that a second one can be told. Raises Reject: no address.

    ``unsubscribe``: where one POST ends mails of this kind (RFC 8058).
    """
    message = EmailMessage()
    try:
        message["From"] = sender
        message["To"] = Address(addr_spec=to)
    except (ValueError, IndexError, MessageError):
        raise Reject("the address is none") from None
    message["Subject"] = subject
    message["Message-ID"] = f"<{message_id}@nebengjek>"
    message["Auto-Submitted"] = "auto-generated"
    if unsubscribe is not None:
        message["List-Unsubscribe"] = f"<{unsubscribe}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message.set_content(text)
    return message
