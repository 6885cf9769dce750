"""Whether the pods that hold readers are well: each says so on its own, and when it is asked."""

import asyncio

from nebengjek.bus.errors import BusError
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.message import token
from nebengjek.errors import Invalid, Unavailable
from nebengjek.usage import Usage
from nebengjek_plugins.chat.contracts import HealthRequest, HealthResponse, HeartbeatMessage
from nebengjek_plugins.chat.hub import Hub

FORGOTTEN_AFTER = 60.0
"""Seconds for which a pod that says nothing any more is still asked: it may only be held up."""


class Health:
    def __init__(self, bus: MessageBus, hub: Hub, clock: Clock, *, timeout: float) -> None:
        self._bus = bus
        self._hub = hub
        self._clock = clock
        self._timeout = timeout
        self._usage = Usage()
        self._heard: dict[str, float] = {}

    async def answer(self, _: HealthRequest) -> HealthResponse:
        """On ``chat.pod.{pod_id}.health``."""
        return HealthResponse(
            pod_id=self._hub.pod_id,
            status="draining" if self._hub.closing else "healthy",
            active_connections=self._hub.connections,
            timestamp=self._clock.now(),
        )

    async def beat(self) -> None:
        """Each five seconds: say that this pod is there."""
        self._usage.count()
        beat = HeartbeatMessage(
            pod_id=self._hub.pod_id,
            timestamp=self._clock.now(),
            active_connections=self._hub.connections,
            memory_usage_mb=self._usage.memory_mb,
            cpu_usage_percent=self._usage.cpu_percent,
        )
        try:
            await self._bus.direct.tell(f"chat.pod.{token(self._hub.pod_id)}.heartbeat", beat, sensitive=False)
        except (Unavailable, BusError):
            # Nobody hears it; the bus says in its own health that it is away.
            return

    async def heard(self, beat: HeartbeatMessage) -> None:
        self._heard[beat.pod_id] = self._clock.seconds()

    async def ask(self, pod_id: str) -> HealthResponse:
        """Raises NoResponders (no such pod), RequestTimeout, Invalid."""
        subject = f"chat.pod.{token(pod_id)}.health"
        return await self._bus.direct.ask(subject, None, HealthResponse, timeout=self._timeout)

    async def ask_all(self) -> tuple[list[HealthResponse], list[str]]:
        """Of the pods heard within the last minute: what they answer, and which do not."""
        limit = self._clock.seconds() - FORGOTTEN_AFTER
        self._heard = {pod_id: at for pod_id, at in self._heard.items() if at >= limit}
        pods = sorted({*self._heard, self._hub.pod_id})
        answers = await asyncio.gather(*(self._answer_of(pod_id) for pod_id in pods))
        well = [answer for answer in answers if answer is not None]
        return well, [pod_id for pod_id, answer in zip(pods, answers, strict=True) if answer is None]

    async def _answer_of(self, pod_id: str) -> HealthResponse | None:
        try:
            return await self.ask(pod_id)
        except (Unavailable, Invalid):
            return None
