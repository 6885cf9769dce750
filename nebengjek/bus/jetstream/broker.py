"""The broker on a nats-server with JetStream: what is published to streams, and what comes from consumers.

nats-py's own JetStream layer is not used: its fetch misses messages over a restart and takes a deleted consumer for a
timeout. The connection is in core.py, streams and consumers are managed in api.py.
"""

import ssl
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from nebengjek.bus.deliveries import Batch, Consumption, Delivery
from nebengjek.bus.errors import ApiError, Disconnected, MaxPayload
from nebengjek.bus.interface import ConnectionStatus, Outcome
from nebengjek.bus.jetstream.access import NatsOptions, access, tls_context
from nebengjek.bus.jetstream.api import JetStreamApi
from nebengjek.bus.jetstream.publishing import Publisher
from nebengjek.bus.jetstream.pull import JetStreamConsumption, Pull
from nebengjek.bus.messages import Envelope, PubAck, StoredMessage
from nebengjek.bus.ordered import read_in_order
from nebengjek.bus.pushing import PushSource, open_source
from nebengjek.bus.specs import Deliver
from nebengjek.bus.subjects import check_name
from nebengjek.bus.wire_delivery import ACK_PREFIX, WireDelivery


class JetStreamBroker(JetStreamApi):
    """A connection to a nats-server, for ever: it is made again whenever it breaks, each ``reconnect_wait`` seconds.

    ``url``: one or several servers. ``user`` with ``password``, ``token`` or ``credentials`` (a file with a user's
    JWT and seed, or with an NKey's seed alone) say who we are. ``tls``, or a ``tls://`` address: nothing is said in
    the clear. ``reconnect_wait``: seconds between two tries at most, by chance as little as half of it, so that many
    pods do not come back at one moment. ``ping_interval``: a connection on which two pings in a row, so many seconds
    apart, were not answered is dead, and made again. ``inbox_prefix``: where answers come; below the user's name unless
    it is set. ``domain``: the JetStream domain. ``connect_timeout``: how long ``connect`` waits before it goes on in
    the background. While the connection is away, settling is kept and sent when it returns.
    """

    durable: ClassVar[bool] = True

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        name: str,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        credentials: str | Path | None = None,
        tls: ssl.SSLContext | None = None,
        tls_hostname: str | None = None,
        domain: str | None = None,
        inbox_prefix: str | None = None,
        connect_timeout: float = 5.0,
        reconnect_wait: float = 2.0,
        ping_interval: float = 5.0,
        request_timeout: float = 5.0,
    ) -> None:
        who = access(
            url,
            user=user,
            password=password,
            token=token,
            credentials=credentials,
            tls=tls,
            tls_hostname=tls_hostname,
            domain=domain,
        )
        super().__init__(
            who,
            name=name,
            inbox_prefix=inbox_prefix,
            connect_timeout=connect_timeout,
            reconnect_wait=reconnect_wait,
            ping_interval=ping_interval,
            request_timeout=request_timeout,
        )
        self._publisher = Publisher(self)
        self._consumptions: set[JetStreamConsumption] = set()
        self._sources: set[PushSource] = set()
        self.on_status(self._lost_sources)

    @classmethod
    def from_settings(cls, settings: NatsOptions, *, name: str) -> "JetStreamBroker":
        """From the settings' table; without TLS files a ``tls://`` server is checked by the system's authorities.

        Raises Misconfigured for a file that holds something else than its setting says.
        """
        return cls(
            settings.url or "nats://127.0.0.1:4222",
            name=name,
            user=settings.user,
            password=settings.password,
            token=settings.token,
            credentials=settings.credentials,
            tls=tls_context(settings.tls_ca, settings.tls_cert, settings.tls_key),
            domain=settings.domain,
            inbox_prefix=settings.inbox_prefix,
            connect_timeout=settings.connect_timeout,
        )

    async def connect(self) -> None:
        self._publisher.start()
        await super().connect()

    async def close(self) -> None:
        for source in (*self._consumptions, *self._sources):
            await source.close()
        await super().close()
        await self._publisher.stop()

    def _lost_sources(self, status: ConnectionStatus) -> None:
        if status is ConnectionStatus.DOWN:
            for source in self._sources:
                source.lost()

    # -- publishing

    def submit_all(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        if self._status is not ConnectionStatus.UP or self._deaf is not None:
            return [self._deaf or Disconnected("bus") for _ in envelopes]
        return [self._submit(envelope) for envelope in envelopes]

    def _submit(self, envelope: Envelope) -> Outcome:
        try:
            self._check_payload(envelope.header_bytes + len(envelope.data))
        except MaxPayload as error:
            return error
        return self._publisher.submit(envelope)

    async def settled(self, ack: PubAck) -> None:
        return

    # -- consuming

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await delivery.ack()

    async def pull(
        self,
        stream: str,
        consumer: str,
        *,
        batch: int = 1,
        expires: float | None = None,
        no_wait: bool = False,
        max_bytes: int | None = None,
        heartbeat: float | None = None,
        acking: Delivery | None = None,
    ) -> Batch:
        check_name(stream)
        check_name(consumer)
        if heartbeat is not None and (expires is None or heartbeat * 2 > expires):
            raise ValueError("a heartbeat needs an expiry of at least twice its length")
        self._must_hear()
        subject, acked = self._next_subject(stream, consumer), b""
        if acking is not None:
            assert isinstance(acking, WireDelivery)
            acking.settle()
            subject, acked = acking.reply, b"+NXT "
        pull = Pull(self, subject, max(1, batch), acked)
        return await pull.collect(expires=expires, no_wait=no_wait, max_bytes=max_bytes, heartbeat=heartbeat)

    def _next_subject(self, stream: str, consumer: str) -> str:
        return f"{self._api}.CONSUMER.MSG.NEXT.{stream}.{consumer}"

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        subject = self._next_subject(check_name(stream), check_name(consumer))
        consumption = JetStreamConsumption(self, subject, prefetch, expires, self._consumptions.discard)
        self._consumptions.add(consumption)
        await consumption.open()
        return consumption

    async def push(self, stream: str, consumer: str) -> Consumption:
        source = await open_source(self, self, check_name(stream), check_name(consumer), self._sources.discard)
        self._sources.add(source)
        return source

    def ordered(
        self,
        stream: str,
        *filters: str,
        since: int | datetime | Deliver = Deliver.ALL,
        headers_only: bool = False,
        until_drained: bool = False,
    ) -> AsyncGenerator[StoredMessage, None]:
        check_name(stream)
        return read_in_order(self, stream, filters, since=since, headers_only=headers_only, until_drained=until_drained)

    async def give_up(self, stream: str, consumer: str, seq: int, reason: str = "") -> None:
        if (await self.consumer_info(stream, consumer)).delivered.stream < seq:
            raise ApiError(10037, f"{seq} was never delivered", status=404)
        # An ack subject with a consumer sequence of nobody's: the ack floor does not take it for its next.
        subject = f"{ACK_PREFIX}{stream}.{consumer}.1.{seq}.0.0.0"
        await self.ask(subject, f"+TERM {reason}".rstrip().encode(), None, self._request_timeout)
