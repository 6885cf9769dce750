"""How a push leaves: to a browser's push service, encrypted for that browser (RFC 8030, 8188, 8291, VAPID 8292)."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Protocol
from urllib.parse import urlsplit

import http_ece
import httpx
import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct

from nebengjek.bus.handling import Reject
from nebengjek.clock import Clock
from nebengjek.errors import Misconfigured, NebengJekError

log = structlog.stdlib.get_logger("nebengjek.notifications")

_TOKEN_SECONDS = 12 * 3600
"""RFC 8292 allows 24 h."""


class PushFailed(NebengJekError):
    """The push service is away, slow, or does not want it now; without the device's address."""


class DeviceGone(NebengJekError):
    """Nobody is reached there any more."""


class Device(Struct, frozen=True, kw_only=True):
    """``address``: of a browser at its push service, with its keys in base64url; or a token of FCM."""

    address: str
    p256dh: str = ""
    auth: str = ""


class Push(Struct, frozen=True, kw_only=True):
    """``ttl``: seconds for which it is of use; of one ``topic`` (at most 32 letters) only the newest is shown."""

    title: str
    body: str
    data: dict[str, str]
    ttl: int
    urgent: bool
    topic: str


class PushSender(Protocol):
    async def send(self, device: Device, push: Push) -> None:
        """Return when the service has taken it. Raises PushFailed, DeviceGone; Reject when it never will."""


class ConsolePush:
    """For development: nothing is sent, and the log does not say to whom."""

    async def send(self, device: Device, push: Push) -> None:
        log.info("push.not_sent", topic=push.topic, reason="no key for this kind of device is set")


class WebPush:
    """``key``: the private key of this server in base64url, by which push services know it."""

    def __init__(self, key: str, *, subject: str, clock: Clock, timeout: float) -> None:
        try:
            self._key = ec.derive_private_key(int.from_bytes(unpadded(key)), ec.SECP256R1())
        except ValueError as error:
            raise Misconfigured("plugin.notifications.vapid_key: expected a private key of P-256") from error
        self.public_key = padless(point_of(self._key))
        self._subject = subject
        self._clock = clock
        self._timeout = timeout

    async def send(self, device: Device, push: Push) -> None:
        content = msgspec.json.encode({"title": push.title, "body": push.body, "data": push.data})
        try:
            sealed = http_ece.encrypt(
                content,
                private_key=ec.generate_private_key(ec.SECP256R1()),
                dh=unpadded(device.p256dh),
                auth_secret=unpadded(device.auth),
            )
        except (ValueError, http_ece.ECEException):
            raise DeviceGone("the keys of the device are none") from None
        headers = {
            "TTL": str(push.ttl),
            "Urgency": "high" if push.urgent else "normal",
            "Topic": push.topic,
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "Authorization": self._authorization(device.address),
        }
        check(await post(device.address, timeout=self._timeout, content=sealed, headers=headers))

    def _authorization(self, address: str) -> str:
        parts = urlsplit(address)
        claims = {
            "aud": f"{parts.scheme}://{parts.netloc}",
            "exp": int(self._clock.seconds()) + _TOKEN_SECONDS,
            "sub": self._subject,
        }
        return f"vapid t={jwt.encode(claims, self._key, algorithm='ES256')}, k={self.public_key}"


async def post(url: str, *, timeout: float, **options: Any) -> httpx.Response:
    """Raises PushFailed when nobody answers."""
    try:
        async with httpx.AsyncClient(timeout=timeout, follow_redirects=False) as http:
            return await http.post(url, **options)
    except httpx.HTTPError as error:
        # Not its text: it may quote the address.
        raise PushFailed(f"the push service does not answer ({type(error).__name__})") from None


def check(answer: httpx.Response) -> None:
    """Raises DeviceGone, PushFailed, Reject."""
    if answer.is_success:
        return
    if answer.status_code in (404, 410):
        raise DeviceGone("the push service does not know the device any more")
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise PushFailed(f"the push service says {answer.status_code}")
    raise Reject(f"the push service refuses it for good: {answer.status_code}")


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Its public key, uncompressed, as browsers and push services write it."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def unpadded(text: str) -> bytes:
    """Bytes of base64url without its padding. Raises ValueError."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def padless(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
