"""One-time codes by SMS: left in the queue by whoever makes them, carried to the gateway by whoever works.

A code is noted as sent by forgetting it, after the gateway took it: killed in between, the same code goes again. One
that still waits when the next is asked for is of no use any more, and is not sent.
"""

from base64 import b64decode, b64encode
from datetime import timedelta

import msgspec
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nebengjek.bus.handling import Reject
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.errors import NebengJekError, Unavailable
from nebengjek.faststate import FastState
from nebengjek.module import SmsSender
from nebengjek_plugins.notifications.contracts import SmsWanted

log = structlog.stdlib.get_logger("nebengjek.notifications")

_NONCE = bytes(12)
"""Each seal is used for one text and never again."""


class SmsFailed(NebengJekError):
    """The gateway is away, slow, or refuses; without the number."""


class Texts:
    """An ``SmsSender`` that does not wait for the gateway. ``life``: seconds after which a text is of no use."""

    def __init__(self, bus: MessageBus, state: FastState, clock: Clock, gateway: SmsSender, *, life: float) -> None:
        self._bus = bus
        self._state = state
        self._clock = clock
        self._gateway = gateway
        self._life = life

    async def send(self, msisdn: str, text: str, topic: str | None = None) -> None:
        """Return when the queue has it. Raises Unavailable."""
        sms_id, seal = uuid7(), AESGCM.generate_key(128)
        wanted = SmsWanted(
            sms_id=sms_id,
            seal=b64encode(seal).decode(),
            expires_at=self._clock.now() + timedelta(seconds=self._life),
        )
        content = AESGCM(seal).encrypt(_NONCE, msgspec.json.encode((msisdn, text, topic)), sms_id.encode())
        await self._state.put(_key(sms_id), content, self._life)
        if topic is not None:
            await self._state.put(_newest(topic), sms_id.encode(), self._life)
        await self._bus.publish(wanted)

    async def carry(self, event: SmsWanted) -> None:
        """Raises SmsFailed; Reject when the code is out of date."""
        if event.expires_at <= self._clock.now():
            raise Reject("the code is out of date, it was not sent any more")
        content = await self._state.get(_key(event.sms_id))
        if content is None:
            # It was sent before the process that did so could say it, or the fast state forgot the code itself too.
            log.info("sms.nothing_left_to_send", sms_id=event.sms_id)
            return
        opened = AESGCM(b64decode(event.seal)).decrypt(_NONCE, content, event.sms_id.encode())
        msisdn, text, topic = msgspec.json.decode(opened, type=tuple[str, str, str | None])
        if topic is not None and await self._state.get(_newest(topic)) not in (None, event.sms_id.encode()):
            log.info("sms.replaced", sms_id=event.sms_id)
            return
        try:
            await self._gateway.send(msisdn, text, topic)
        except Unavailable as error:
            # One number that the gateway refuses must not hold up the codes of all others, as a breaker would.
            raise SmsFailed(error.message) from None
        await self._state.delete(_key(event.sms_id))


def _key(sms_id: str) -> str:
    return f"notifications:sms:{sms_id}"


def _newest(topic: str) -> str:
    return f"notifications:sms:newest:{topic}"
