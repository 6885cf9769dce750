"""The processes that run this application: each tells the others that it is there, every few seconds."""

from collections.abc import Callable

import msgspec

from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.pods import HEARTBEAT, PodHeartbeat, health_subject
from nebengjek.errors import Unavailable
from nebengjek.usage import Usage

FORGOTTEN_AFTER = 10.0


class Pods:
    """``beat`` says that this pod is there; ``known`` lists those that were heard in the last ten seconds."""

    def __init__(
        self,
        bus: MessageBus,
        clock: Clock,
        *,
        modules: list[str],
        embedded: list[str],
        sockets: Callable[[], int] = lambda: 0,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._modules = modules
        self._embedded = embedded
        self._heard: dict[str, tuple[float, PodHeartbeat]] = {}
        """By pod, with the time at which it was heard by this one's clock: that of another may be wrong."""
        self._usage = Usage()
        self._sockets = sockets
        self._listening = False

    async def beat(self) -> None:
        """Tell the others, and begin to hear them."""
        try:
            if not self._listening:
                await self._bus.broker.subscribe(HEARTBEAT, self._hear)
                await self._bus.broker.subscribe(health_subject(self._bus.pod_id), self._asked)
                self._listening = True
            self._usage.count()
            await self._bus.broker.core_publish(HEARTBEAT, msgspec.json.encode(self.own()))
        except Unavailable:
            # Nobody hears it, so nobody misses it: the connection's state is in health.
            return

    def own(self) -> PodHeartbeat:
        """This pod, now; its CPU between the last two beats."""
        return PodHeartbeat(
            pod_id=self._bus.pod_id,
            timestamp=self._clock.now(),
            active_connections=self._sockets(),
            memory_usage_mb=self._usage.memory_mb,
            cpu_usage_percent=self._usage.cpu_percent,
            modules=self._modules,
            embedded=self._embedded,
        )

    async def _hear(self, message: CoreMessage) -> None:
        beat = msgspec.json.decode(message.data, type=PodHeartbeat)
        self._heard[beat.pod_id] = (self._clock.seconds(), beat)

    async def _asked(self, message: CoreMessage) -> None:
        if message.reply:
            await self._bus.broker.core_publish(message.reply, msgspec.json.encode(self.own()))

    def known(self) -> list[PodHeartbeat]:
        """This pod and those heard lately."""
        limit = self._clock.seconds() - FORGOTTEN_AFTER
        self._heard = {pod: heard for pod, heard in self._heard.items() if heard[0] >= limit}
        others = [beat for pod, (_, beat) in sorted(self._heard.items()) if pod != self._bus.pod_id]
        return [self.own(), *others]

    def conflict(self) -> str | None:
        """Why this pod must not serve: others are there, but a part of it lives in its process only."""
        others = self.known()[1:]
        if others and self._embedded:
            return f"{', '.join(self._embedded)} is embedded in this process, but {others[0].pod_id} runs too"
        return None
