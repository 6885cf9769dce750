"""The processes that run this application: each tells the others that it is there, every few seconds."""

from collections.abc import Callable

import msgspec

from nebengjek.bus.interface import ConnectionStatus
from nebengjek.bus.messages import CoreMessage
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.pods import HEARTBEAT, PodHeartbeat, health_subject
from nebengjek.errors import Misconfigured, Unavailable
from nebengjek.usage import Usage

PHONES = "users"
"""The module that one pod runs and no other: mailboxes and presence of phones live in its process."""
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
                for name in (self._bus.pod_id, *([PHONES] if PHONES in self._modules else [])):
                    await self._bus.broker.subscribe(health_subject(name), self._asked)
                self._listening = True
            self._usage.count()
            await self._bus.broker.core_publish(HEARTBEAT, msgspec.json.encode(self.own()))
        except Unavailable:
            # Nobody hears it, so nobody misses it: the connection's state is in health.
            return

    async def refuse_second(self) -> None:
        """Before the start: does another pod serve the phones? Raises Misconfigured, which names it.

        Who cannot ask, because the bus is away, or starts in the same moment learns it later: see ``conflict``.
        """
        broker = self._bus.broker
        if PHONES not in self._modules or broker.status is not ConnectionStatus.UP:
            return
        try:
            reply = await broker.request(health_subject(PHONES), b"", timeout=1.0)
        except Unavailable:
            return
        other = msgspec.json.decode(reply.data, type=PodHeartbeat)
        if PHONES in other.modules:
            raise Misconfigured(
                f"{other.pod_id} runs the module {PHONES} already, and phones are served by one process in this "
                "version: end that one, or run the other modules here with --modules"
            )

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
        twins = [beat.pod_id for beat in others if PHONES in beat.modules]
        if twins and PHONES in self._modules:
            return f"{twins[0]} runs the module {PHONES} too: a phone misses what the other pod hears for it"
        return None
