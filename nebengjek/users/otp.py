"""One-time codes: six random digits, kept as a keyed hash, for five minutes, five wrong tries or one use."""

import hashlib
import hmac
import secrets

import structlog

from nebengjek.errors import RateLimited, Unauthenticated
from nebengjek.faststate import FastState
from nebengjek.module import SmsSender

DIGITS = 6

log = structlog.stdlib.get_logger("nebengjek.users.otp")


class ConsoleSms:
    """For development: says that a message would have been sent, not what is in it."""

    async def send(self, msisdn: str, text: str, topic: str | None = None) -> None:
        log.info("sms.not_sent", reason="no sms gateway is configured", length=len(text))


class Otp:
    """``requests`` codes per number and ``window`` seconds, ``per_address`` requests per minute (0 = off)."""

    def __init__(
        self,
        state: FastState,
        sms: SmsSender,
        secret: str,
        *,
        lifetime: float = 300.0,
        tries: int = 5,
        requests: int = 3,
        window: float = 900.0,
        per_address: int = 10,
    ) -> None:
        self._state = state
        self._sms = sms
        self._secret = secret.encode()
        self.lifetime = lifetime
        self._tries = tries
        self._requests = requests
        self._window = window
        self._per_address = per_address

    async def generate(self, msisdn: str, address: str) -> str:
        """Send a new code, which replaces the one before. Raises RateLimited."""
        if self._per_address:
            await self._limit(f"otp:address:{address}", self._per_address, 60.0)
        await self._limit(f"otp:requests:{self._name(msisdn)}", self._requests, self._window)
        code = f"{secrets.randbelow(10**DIGITS):0{DIGITS}d}"
        await self._state.delete(f"otp:tries:{self._name(msisdn)}")
        await self._state.put(self._key(msisdn), self._hash(msisdn, code), self.lifetime)
        await self._sms.send(msisdn, f"NebengJek: {code}", topic=self._key(msisdn))
        return code

    async def verify(self, msisdn: str, code: str) -> None:
        """Use the code up. Raises Unauthenticated (OTP_INVALID, OTP_EXPIRED); dead after too many wrong tries."""
        expected = await self._state.get(self._key(msisdn))
        if expected is None:
            raise Unauthenticated("there is no code for this number, or it is too old", code="OTP_EXPIRED")
        count, _ = await self._state.hit(f"otp:tries:{self._name(msisdn)}", self.lifetime)
        if count > self._tries:
            await self._state.delete(self._key(msisdn))
            raise Unauthenticated("too many wrong tries, ask for a new code", code="OTP_EXPIRED")
        if not hmac.compare_digest(expected, self._hash(msisdn, code)):
            if count == self._tries:
                await self._state.delete(self._key(msisdn))
            raise Unauthenticated("the code is wrong", code="OTP_INVALID")
        # Two phones with the same right code: take() gives it to one.
        if await self._state.take(self._key(msisdn)) != expected:
            raise Unauthenticated("the code has been used", code="OTP_EXPIRED")

    async def _limit(self, key: str, allowed: int, window: float) -> None:
        count, left = await self._state.hit(key, window)
        if count > allowed:
            raise RateLimited("too many codes asked for", retry_after=left)

    def _name(self, msisdn: str) -> str:
        # Keys are seen by operators of the store; a number is not for them.
        return hmac.new(self._secret, msisdn.encode(), hashlib.sha256).hexdigest()[:32]

    def _key(self, msisdn: str) -> str:
        return f"otp:code:{self._name(msisdn)}"

    def _hash(self, msisdn: str, code: str) -> bytes:
        return hmac.new(self._secret, f"{msisdn}:{code}".encode(), hashlib.sha256).digest()
