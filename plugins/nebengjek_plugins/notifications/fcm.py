"""Pushes to apps over Firebase Cloud Messaging, HTTP v1: a token for the service account, then one request each."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec
from msgspec import Meta, Struct

from nebengjek.clock import Clock
from nebengjek.errors import Misconfigured
from nebengjek_plugins.notifications.push import Device, DeviceGone, Push, PushFailed, check, post

_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EARLY = timedelta(minutes=1)


class ServiceAccount(Struct, frozen=True, kw_only=True):
    """What of the file is used."""

    project_id: str
    client_email: str
    private_key: str
    token_uri: Annotated[str, Meta(pattern=r"^https?://")]


class _Token(Struct, frozen=True):
    access_token: str
    expires_in: int


class FcmPush:
    def __init__(self, account: ServiceAccount, *, url: str, clock: Clock, timeout: float) -> None:
        self._account = account
        self._url = f"{url}/v1/projects/{account.project_id}/messages:send"
        self._clock = clock
        self._timeout = timeout
        self._token = ""
        self._good_until = clock.now()

    async def send(self, device: Device, push: Push) -> None:
        message = {
            "token": device.address,
            "notification": {"title": push.title, "body": push.body},
            "data": push.data,
            "android": {
                "ttl": f"{push.ttl}s",
                "priority": "HIGH" if push.urgent else "NORMAL",
                "collapse_key": push.topic,
            },
            "apns": {
                "headers": {
                    "apns-expiration": str(int(self._clock.seconds()) + push.ttl),
                    "apns-priority": "10" if push.urgent else "5",
                    "apns-collapse-id": push.topic,
                }
            },
        }
        headers = {"Authorization": f"Bearer {await self._bearer()}"}
        answer = await post(self._url, timeout=self._timeout, json={"message": message}, headers=headers)
        if answer.status_code == 401:
            self._token = ""
            raise PushFailed("the push service does not take the token")
        if answer.status_code == 400 and "registration token is not a valid" in answer.text:
            raise DeviceGone("the token of the device is none")
        check(answer)

    async def _bearer(self) -> str:
        if self._token and self._clock.now() < self._good_until:
            return self._token
        account, now = self._account, int(self._clock.seconds())
        claims = {
            "iss": account.client_email,
            "scope": _SCOPE,
            "aud": account.token_uri,
            "iat": now,
            "exp": now + 3600,
        }
        assertion = jwt.encode(claims, account.private_key, algorithm="RS256")
        form = {"grant_type": _GRANT, "assertion": assertion}
        answer = await post(account.token_uri, timeout=self._timeout, data=form)
        if not answer.is_success:
            raise PushFailed(f"no token for the service account: {answer.status_code}")
        token = msgspec.json.decode(answer.content, type=_Token)
        self._token = token.access_token
        self._good_until = self._clock.now() + timedelta(seconds=token.expires_in) - _EARLY
        return self._token


def read_account(path: str) -> ServiceAccount:
    """Raises Misconfigured."""
    name = "plugin.notifications.fcm_credentials"
    try:
        content: Any = Path(path).read_bytes()
        return msgspec.json.decode(content, type=ServiceAccount)
    except OSError as error:
        raise Misconfigured(f"{name} = {path!r}: it cannot be read") from error
    except msgspec.DecodeError as error:
        raise Misconfigured(f"{name}: expected the file of a service account: {error}") from error
