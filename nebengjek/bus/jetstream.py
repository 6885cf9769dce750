"""The broker on a nats-server with JetStream: nats-py's core and the JSON API.

nats-py's own JetStream layer is not used: its fetch misses messages over a restart and takes a deleted consumer for a
timeout. Connecting, requests, publishing and core messages are here, over 300 lines because they share one connection
and one inbox; pulling is in jetstream_pull.py, JSON in
jetstream_wire.py, nats-py's client in jetstream_client.py.
"""

import asyncio
import random
import secrets
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import msgspec
import structlog
from msgspec import Struct
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from nebengjek.bus import interface
from nebengjek.bus.checks import check_consumer, check_consumer_change, check_stream, check_stream_change
from nebengjek.bus.interface import (
    MAX_PAYLOAD,
    Account,
    ApiError,
    Batch,
    Broker,
    Connection,
    ConnectionStatus,
    ConsumerInfo,
    ConsumerSpec,
    Consumption,
    CoreHandler,
    CoreMessage,
    Deliver,
    Delivery,
    Disconnected,
    Envelope,
    Headers,
    InvalidHeader,
    MaxPayload,
    NoResponders,
    NoStream,
    NotPermitted,
    Outcome,
    PubAck,
    PublishRefused,
    PullStatus,
    RequestTimeout,
    StoredMessage,
    StreamInfo,
    StreamSpec,
    Subscription,
    check_headers,
    check_name,
    check_subject,
)
from nebengjek.bus.jetstream_access import (
    Violation,
    credentials_option,
    inbox_of,
    servers,
    tls_context,
    violation,
    wants_tls,
)
from nebengjek.bus.jetstream_client import ReadingClient
from nebengjek.bus.jetstream_pull import JetStreamConsumption, Link, Pull, Received
from nebengjek.bus.jetstream_wire import (
    Json,
    account,
    check_response,
    consumer_config,
    consumer_info,
    rfc3339,
    stored_message,
    stream_config,
    stream_info,
    stream_spec,
)
from nebengjek.bus.ordered import read_in_order
from nebengjek.bus.pushing import PushSource, open_source
from nebengjek.bus.wire_delivery import ACK_PREFIX, Line, Listener, Message, WireDelivery
from nebengjek.errors import Misconfigured

NO_RESPONDERS = "503"
PUBLISH_RETRIES, PUBLISH_PAUSE = 2, 0.25
"""A publish that finds no responders is tried again (ADR-22): a stream's leader may just be changing."""
CLOSE_PATIENCE = 2.0
SAME_TRY = 0.25
SLOW_SAID = 10.0
HELD = 512 * 1024
"""Messages on their way to pulls and push consumers, which the server bounds first."""
MAX_COMPLAINTS = 256
"""So many different refusals are named in the log; a thousand more would say the same."""
_NO_HEADERS: dict[str, str] = {}

log = structlog.stdlib.get_logger("nebengjek.bus")


class NatsOptions(Protocol):
    """What ``from_settings`` reads; files by path, several servers in ``url`` by comma."""

    @property
    def url(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def token(self) -> str | None: ...
    @property
    def credentials(self) -> str | None: ...
    @property
    def tls_ca(self) -> str | None: ...
    @property
    def tls_cert(self) -> str | None: ...
    @property
    def tls_key(self) -> str | None: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def domain(self) -> str | None: ...
    @property
    def inbox_prefix(self) -> str | None: ...


class _Refusal(Struct):
    code: int = 500
    err_code: int = 0
    description: str = ""


class _Answer(Struct):
    """What a stream says to a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Refusal | None = None


_answer = msgspec.json.Decoder(_Answer)


class _Publish:
    __slots__ = ("envelope", "future", "token", "tries")

    def __init__(self, envelope: Envelope, token: str, future: asyncio.Future[PubAck]) -> None:
        self.envelope = envelope
        self.token = token
        self.future = future
        self.tries = 0


class _Listening(Listener, Subscription):
    """One subscription of ours, on whichever client is the present one."""

    def __init__(self, broker: "JetStreamBroker", subject: str, received: Received, queue: str, pending: int) -> None:
        self.subject = subject
        self._pending = pending
        self.received = received
        self.queue = queue
        self._broker = broker
        self.refused: NotPermitted | None = None
        self._client: Client | None = None
        self._there: NatsSubscription | None = None

    async def attach(self, client: Client) -> None:
        if self._client is not client:
            self._client = client
            self.refused = None
            self._there = await client.subscribe(
                self.subject, queue=self.queue, cb=self.received, pending_msgs_limit=self._pending
            )

    async def stop(self) -> None:
        self._broker.forget(self)
        there, self._there = self._there, None
        if there is not None and self._client is not None and not self._client.is_closed:
            await there.unsubscribe()

    async def drain(self) -> None:
        self._broker.forget(self)
        there, self._there = self._there, None
        if there is None or self._client is None or self._client.is_closed:
            return
        if not self._client.is_connected:
            await there.unsubscribe()
            return
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                await there.drain()  # type: ignore[no-untyped-call]
        except (TimeoutError, nats_errors.Error):
            # The connection broke meanwhile: there is nothing more to receive on it.
            log.debug("nats.not_drained", subject=self.subject)

    async def unsubscribe(self) -> None:
        await self.stop()


class JetStreamBroker(Broker, Link, Line):
    """A connection to a nats-server, for ever: it is made again whenever it breaks, each ``reconnect_wait`` seconds.

    ``url``: one or several servers. ``user`` with ``password``, ``token`` or ``credentials`` (a file with a user's
    JWT and seed, or with an NKey's seed alone) say who we are. ``tls``, or a ``tls://`` address: nothing is said in
    the clear. ``reconnect_wait``: seconds between two tries at most, by chance as little as half of it, so that many
    pods do not come back at one moment. ``inbox_prefix``: where answers come; below the user's name unless it is set.
    ``domain``: the JetStream domain. ``connect_timeout``: how long ``connect`` waits before it goes on in the
    background. While the connection is away, settling is kept and sent when it returns.
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
        request_timeout: float = 5.0,
    ) -> None:
        self._servers, *named = servers(url)
        if user is None and token is None and credentials is None:
            user, password, token = named
        self._options: dict[str, Any] = {
            "name": name,
            "user": user,
            "password": password,
            "token": token,
            **(credentials_option(credentials) if credentials is not None else {}),
            "tls": tls,
            "tls_hostname": tls_hostname,
            "connect_timeout": connect_timeout,
            "max_reconnect_attempts": -1,
            "ping_interval": 20,
        }
        self._tls_only = wants_tls(self._servers, tls)
        self._user = user
        self._api = f"$JS.{domain}.API" if domain else "$JS.API"
        self._connect_timeout = connect_timeout
        self._reconnect_wait = reconnect_wait
        self._request_timeout = request_timeout
        self._status = ConnectionStatus.CONNECTING
        self._client: Client | None = None
        self._attached: Client | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._complaints: set[str] = set()
        self._slow: dict[str, float] = {}
        """Until when nothing more is said about subscriptions that lose messages."""
        self._not_permitted: set[Violation] = set()
        self._deaf: NotPermitted | None = None
        """Set when we may not listen to our inbox: no answer could ever come."""
        self._error: str | None = None
        self._changed = 0.0
        self._broke = self._failed = float("-inf")
        self._times_up = 0
        self._traffic = [0, 0, 0, 0]
        """Messages and bytes, out and in, of the clients before the present one."""
        self._status_listeners: list[Callable[[ConnectionStatus], None]] = []
        self._listening: set[_Listening] = set()
        self._background: set[asyncio.Future[None]] = set()
        self._inbox = f"{inbox_prefix or inbox_of(self._user)}.{secrets.token_hex(11)}"
        self._number = 0
        self._published: dict[str, _Publish] = {}
        self._sweep_at = 4096
        self._outgoing: deque[_Publish] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._asked: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._pulls: set[Pull] = set()
        self._consumptions: set[JetStreamConsumption] = set()
        self._sources: set[PushSource] = set()

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

    # -- connection

    async def connect(self) -> None:
        if self._keeper is not None:
            return
        self._changed = asyncio.get_running_loop().time()
        self._keeper = asyncio.create_task(self._keep_connected(), name="nats connection")
        tried = asyncio.create_task(self._tried.wait())
        await asyncio.wait((self._keeper, tried), timeout=self._connect_timeout, return_when=asyncio.FIRST_COMPLETED)
        tried.cancel()
        if self._keeper.done():
            # Only a mistake of ours ends it, such as a malformed address.
            await self._keeper

    async def _keep_connected(self) -> None:
        while True:
            self._count_traffic()
            client = self._client = ReadingClient(tls_only=self._tls_only)
            closed = asyncio.Event()

            async def on_closed(closed: asyncio.Event = closed) -> None:
                closed.set()

            try:
                await client.connect(
                    list(self._servers),
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_connected,
                    closed_cb=on_closed,
                    reconnect_time_wait=self._pause(),  # type: ignore[arg-type] # annotated int, any number works
                    **self._options,
                )
            except Exception as error:
                # The network's failures are tried again in there: this is a setting that cannot work. Whoever
                # called connect hears of it; afterwards nobody would, and it may be mended on the other side.
                self._client = None
                if not self._tried.is_set():
                    raise Misconfigured(f"NATS at {self.where}: {type(error).__name__}: {error}") from error
                log.error("nats.not_connected", exc_info=error)
                await asyncio.sleep(self._pause())
                continue
            await self._listen_all(client)
            if client.is_connected:
                await self._on_connected()
            await closed.wait()
            # The client gave up, as it does when the server refuses us: begin anew.
            self._lost()
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Never more than ``reconnect_wait`` with the handshake, so that loops go on that soon after the server."""
        return self._reconnect_wait * random.uniform(0.5, 0.9)

    async def _listen_all(self, client: Client) -> None:
        try:
            await client.subscribe(f"{self._inbox}.*", cb=self._replied)
            self._attached = client
            for listening in list(self._listening):
                await listening.attach(client)
            await client.flush()
        except nats_errors.Error as error:
            # It broke already. The client subscribes again when it is back, or is replaced by another.
            log.debug("nats.not_subscribed", error=f"{type(error).__name__}: {error}")
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="nats publisher")

    async def _on_connected(self) -> None:
        self._become(ConnectionStatus.UP)

    async def _on_disconnected(self) -> None:
        self._lost()
        now = asyncio.get_running_loop().time()
        soon, self._broke = now - self._broke < self._reconnect_wait, now
        if soon and self._client is not None and self._client.is_reconnecting:
            # It broke as soon as it stood, as it does when the server does not like our certificate: nats-py would
            # try again without a pause.
            await asyncio.sleep(self._pause())

    def _lost(self) -> None:
        self._deaf = None
        if self._status is ConnectionStatus.UP:
            self._become(ConnectionStatus.DOWN)
        self._fail_outstanding()

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats_errors.SlowConsumerError):
            # Called for each message that is lost; to say it for each would make it worse.
            subject, now = error.sub.subject, asyncio.get_running_loop().time()
            if now >= self._slow.get(subject, 0.0):
                self._slow[subject] = now + SLOW_SAID
                log.error("subscription.slow", subject=subject, lost="what comes until it has caught up")
            return
        if (refused := violation(error)) is not None:
            self._refused(refused)
            return
        self._tried.set()
        if self._client is not None:
            self._client.options["reconnect_time_wait"] = self._pause()
        if self._status is ConnectionStatus.UP:
            return
        # Once until it is back: a refused password or name must be seen, sixty tries a minute need not.
        text = f"{type(error).__name__}: {error}"
        now = asyncio.get_running_loop().time()
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            if now - self._failed < SAME_TRY:
                # The reason was said already; this is the end of that connection.
                return
            # Its word that it does not know us is lost when it hangs up before it has read all of ours.
            text += " (a server hangs up on whom it does not let in)"
        self._error, self._failed = text, now
        if text not in self._complaints:
            self._complaints.add(text)
            log.warning("nats.away", where=self.where, error=text)

    def _refused(self, refused: Violation) -> None:
        """The server said no, and says nothing else: whoever waits for an answer hears it from us."""
        doing = "publish to" if refused.publish else "listen to"
        error = NotPermitted(f"{self._name} may not {doing} {refused.subject}")
        if refused not in self._not_permitted and len(self._not_permitted) < MAX_COMPLAINTS:
            self._not_permitted.add(refused)
            log.error("nats.not_permitted", error=str(error), queue=refused.queue or None)
        waiting: list[tuple[str, asyncio.Future[Any]]] = []
        if refused.publish:
            waiting += [(entry.envelope.subject, entry.future) for entry in self._published.values()]
            waiting += self._asked.values()
            for subject, future in waiting:
                if self._is(subject, refused) and not future.done():
                    future.set_exception(NotPermitted(f"{self._name} may not publish to {subject}"))
            for pull in self._pulls:
                if self._is(pull.subject, refused):
                    pull.fail(error)
            for consumption in self._consumptions:
                if self._is(consumption.subject, refused):
                    consumption.fail(error)
        elif refused.subject == f"{self._inbox}.*".lower():
            self._deaf = error
        else:
            for listening in self._listening:
                if (listening.subject.lower(), listening.queue.lower()) == (refused.subject, refused.queue):
                    listening.refused = NotPermitted(f"{self._name} may not listen to {listening.subject}")

    def _is(self, subject: str, refused: Violation) -> bool:
        # A server that is in our domain itself says the subject without it.
        return refused.subject in (subject.lower(), subject.replace(self._api, "$JS.API", 1).lower())

    @property
    def _name(self) -> str:
        return f"the NATS user {self._user}" if self._user else "our NATS user"

    def _fail_outstanding(self) -> None:
        published, self._published = self._published, {}
        self._outgoing.clear()
        futures: list[asyncio.Future[Any]] = [entry.future for entry in published.values()]
        futures += [future for _, future in self._asked.values()]
        for future in futures:
            if not future.done():
                future.set_exception(Disconnected("bus"))
        for pull in self._pulls:
            pull.end(PullStatus.DISCONNECTED)
        for consumption in self._consumptions:
            consumption.lost()
        for source in self._sources:
            source.lost()

    def _become(self, status: ConnectionStatus) -> None:
        if self._status in (status, ConnectionStatus.CLOSED):
            return
        before, self._status = self._status, status
        now = asyncio.get_running_loop().time()
        lasted, self._changed = now - self._changed, now
        if status is ConnectionStatus.UP:
            self._tried.set()
            self._complaints.clear()
            self._error = None
            self._times_up += 1
            self._up.set()
            again = {"away": round(lasted, 3)} if before is ConnectionStatus.DOWN else {}
            log.info("nats.connected", where=self.where, times=self._times_up, **again)
        else:
            self._up.clear()
            if status is ConnectionStatus.DOWN:
                said = self._client.last_error if self._client is not None else None
                self._error = f"{type(said).__name__}: {said}" if said is not None else "the connection broke"
                log.warning("nats.disconnected", where=self.where, lasted=round(lasted, 3), error=self._error)
        for listener in self._status_listeners:
            listener(status)

    async def close(self) -> None:
        if self._status is ConnectionStatus.CLOSED:
            return
        for consumption in (*self._consumptions, *self._sources):
            await consumption.close()
        if self._background:
            await asyncio.wait(self._background, timeout=CLOSE_PATIENCE)
        client = self._client
        if client is not None and client.is_connected:
            try:
                await client.flush(timeout=CLOSE_PATIENCE)  # type: ignore[arg-type] # annotated int, any number works
            except nats_errors.Error:
                log.debug("nats.not_flushed")
        self._become(ConnectionStatus.CLOSED)
        tasks = {task for task in (self._keeper, self._sender) if task is not None}
        while tasks:
            # More than once: a wait_for of nats-py's whose future is done in the same turn swallows a cancellation.
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.1)
        if client is not None:
            await client.close()
        self._fail_outstanding()
        for work in self._background:
            work.cancel()

    @property
    def status(self) -> ConnectionStatus:
        return self._status

    @property
    def where(self) -> str:
        client = self._client
        present = client.connected_url.geturl() if client is not None and client.connected_url else ""
        return present or ", ".join(self._servers)

    def connection(self) -> Connection:
        traffic = [old + new for old, new in zip(self._traffic, self._present_traffic(), strict=True)]
        return Connection(
            status=self._status,
            where=self.where,
            since=self.monotonic() - self._changed if self._keeper is not None else 0.0,
            reconnects=max(0, self._times_up - 1),
            error=self._error if self._deaf is None else str(self._deaf),
            sent=traffic[0],
            sent_bytes=traffic[1],
            received=traffic[2],
            received_bytes=traffic[3],
        )

    def _present_traffic(self) -> list[int]:
        stats = self._client.stats if self._client is not None else {}
        return [stats.get(name, 0) for name in ("out_msgs", "out_bytes", "in_msgs", "in_bytes")]

    def _count_traffic(self) -> None:
        self._traffic = [old + new for old, new in zip(self._traffic, self._present_traffic(), strict=True)]
        self._client = None

    async def account(self) -> Account:
        try:
            return account(await self._call("INFO"))
        except NoResponders as error:
            raise NoResponders("bus", f"no JetStream answers at {self.where} under {self._api}") from error

    async def wait_connected(self) -> None:
        await self._up.wait()

    def on_status(self, listener: Callable[[ConnectionStatus], None]) -> None:
        self._status_listeners.append(listener)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # -- what pulls and deliveries use

    def connected(self) -> bool:
        return self._status is ConnectionStatus.UP

    def new_inbox(self) -> str:
        self._number += 1
        return f"{self._inbox}.{self._number}.pull"

    def next_subject(self, stream: str, consumer: str) -> str:
        return f"{self._api}.CONSUMER.MSG.NEXT.{stream}.{consumer}"

    def in_background(self, work: Awaitable[None]) -> None:
        future = asyncio.ensure_future(work)
        self._background.add(future)
        future.add_done_callback(self._done_in_background)

    def _done_in_background(self, future: asyncio.Future[None]) -> None:
        self._background.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            log.debug("nats.not_sent", error=f"{type(error).__name__}: {error}")

    async def listen(self, subject: str, received: Received) -> Listener:
        return await self._listen(subject, received, "")

    async def attend(self, subject: str, queue: str | None, received: Callable[[Message], None]) -> Listener:
        async def came(message: Msg) -> None:
            received(message)

        return await self._listen_surely(subject, came, queue)

    async def _listen_surely(
        self, subject: str, received: Received, queue: str | None, pending: int = HELD
    ) -> _Listening:
        """When it returns the server knows of it, if it is there. Raises NotPermitted."""
        listening = await self._listen(subject, received, queue or "", pending)
        if self._status is ConnectionStatus.UP and self._attached is not None:
            try:
                await self._attached.flush()
            except nats_errors.Error as error:
                log.debug("nats.not_flushed", error=f"{type(error).__name__}: {error}")
        if listening.refused is not None:
            self.forget(listening)
            raise listening.refused
        return listening

    async def _listen(self, subject: str, received: Received, queue: str, pending: int = HELD) -> _Listening:
        """``pending``: messages that may wait to be taken; what comes then is lost."""
        listening = _Listening(self, subject, received, queue, pending)
        self._listening.add(listening)
        if self._attached is not None and not self._attached.is_closed:
            await listening.attach(self._attached)
        return listening

    def forget(self, listening: _Listening) -> None:
        self._listening.discard(listening)

    async def send(self, subject: str, data: bytes, *, reply: str = "", headers: Headers | None = None) -> None:
        client = self._attached
        if client is None or self._status is ConnectionStatus.CLOSED:
            raise Disconnected("bus")
        try:
            await client.publish(subject, data, reply=reply, headers=cast(dict[str, str], headers) if headers else None)
        except nats_errors.MaxPayloadError as error:
            raise MaxPayload(str(error)) from error
        except nats_errors.BadHeaderError as error:
            raise InvalidHeader(str(error)) from error
        except nats_errors.Error as error:
            raise Disconnected("bus", f"{type(error).__name__}: {error}") from error

    async def ask(self, subject: str, data: bytes, headers: Headers | None, timeout: float) -> Msg:
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        if self._deaf is not None:
            raise self._deaf
        self._number += 1
        token = f"r{self._number}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._asked[token] = (subject, answer)
        try:
            async with asyncio.timeout(timeout):
                await self.send(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
                message = await answer
        except TimeoutError as error:
            raise RequestTimeout("bus", f"no answer on {subject} within {timeout} s") from error
        finally:
            del self._asked[token]
        if message.headers is not None and message.headers.get("Status") == NO_RESPONDERS and not message.data:
            raise NoResponders("bus", f"nobody serves {subject}")
        return message

    async def _replied(self, message: Msg) -> None:
        token = message.subject[len(self._inbox) + 1 :]
        publish = self._published.get(token)
        if publish is not None:
            self._acknowledged(publish, message)
        elif (asked := self._asked.get(token)) is not None and not asked[1].done():
            asked[1].set_result(message)

    async def _call(self, verb: str, body: Json | None = None) -> Json:
        data = msgspec.json.encode(body) if body is not None else b""
        reply = await self.ask(f"{self._api}.{verb}", data, None, self._request_timeout)
        return check_response(msgspec.json.decode(reply.data, type=dict[str, Any]))

    async def _list(self, verb: str, key: str) -> list[Json]:
        found: list[Json] = []
        while True:
            page = await self._call(verb, {"offset": len(found)})
            found += page.get(key) or []
            if not page.get(key) or len(found) >= page["total"]:
                return found

    # -- streams

    async def create_stream(self, spec: StreamSpec) -> StreamInfo:
        spec = check_stream(spec)
        return stream_info(await self._call(f"STREAM.CREATE.{spec.name}", stream_config(spec)))

    async def update_stream(self, spec: StreamSpec) -> StreamInfo:
        spec = check_stream(spec)
        present = await self._call(f"STREAM.INFO.{spec.name}")
        check_stream_change(stream_spec(present["config"]), spec)
        return stream_info(await self._call(f"STREAM.UPDATE.{spec.name}", stream_config(spec)))

    async def stream_info(self, name: str) -> StreamInfo:
        return stream_info(await self._call(f"STREAM.INFO.{check_name(name)}"))

    async def streams(self) -> list[StreamInfo]:
        return [stream_info(one) for one in await self._list("STREAM.LIST", "streams")]

    async def delete_stream(self, name: str) -> None:
        await self._call(f"STREAM.DELETE.{check_name(name)}")

    async def purge_stream(
        self, name: str, *, subject: str | None = None, keep: int | None = None, up_to: int | None = None
    ) -> int:
        body = {"filter": subject, "keep": keep, "seq": up_to}
        request = {key: value for key, value in body.items() if value is not None}
        response = await self._call(f"STREAM.PURGE.{check_name(name)}", request)
        return int(response["purged"])

    async def get_message(
        self, stream: str, seq: int | None = None, *, last_by_subject: str | None = None
    ) -> StoredMessage:
        which: Json = {"seq": seq or 0} if last_by_subject is None else {"last_by_subj": last_by_subject}
        response = await self._call(f"STREAM.MSG.GET.{check_name(stream)}", which)
        return stored_message(stream, response["message"])

    async def delete_message(self, stream: str, seq: int) -> None:
        await self._call(f"STREAM.MSG.DELETE.{check_name(stream)}", {"seq": seq, "no_erase": True})

    # -- consumers

    async def create_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        return await self._put_consumer(check_name(stream), check_consumer(spec), "create")

    async def update_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        check_name(stream)
        spec = check_consumer(spec)
        if spec.name is not None:
            present = await self._find_consumer(stream, spec.name)
            if present is not None:
                check_consumer_change(present.spec, spec)
        return await self._put_consumer(stream, spec, "update")

    async def _find_consumer(self, stream: str, name: str) -> ConsumerInfo | None:
        return next((info for info in await self.consumers(stream) if info.name == name), None)

    async def _put_consumer(self, stream: str, spec: ConsumerSpec, action: str) -> ConsumerInfo:
        config = consumer_config(spec)
        # Name and filter are said in the subject too, an ephemeral's as well: permissions can tell one from another.
        name = config.setdefault("name", secrets.token_hex(6))
        filters = f".{spec.filters[0]}" if len(spec.filters) == 1 else ""
        body = {"stream_name": stream, "config": config, "action": action}
        return consumer_info(await self._call(f"CONSUMER.CREATE.{stream}.{name}{filters}", body))

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo:
        return consumer_info(await self._call(f"CONSUMER.INFO.{check_name(stream)}.{check_name(name)}"))

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        return [consumer_info(one) for one in await self._list(f"CONSUMER.LIST.{check_name(stream)}", "consumers")]

    async def delete_consumer(self, stream: str, name: str) -> None:
        await self._call(f"CONSUMER.DELETE.{check_name(stream)}.{check_name(name)}")

    async def pause_consumer(self, stream: str, name: str, until: datetime | None) -> None:
        body: Json = {"pause_until": rfc3339(until)} if until is not None else {}
        await self._call(f"CONSUMER.PAUSE.{check_name(stream)}.{check_name(name)}", body)

    # -- messages

    def submit_all(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        if self._status is not ConnectionStatus.UP or self._deaf is not None:
            return [self._deaf or Disconnected("bus") for _ in envelopes]
        loop = asyncio.get_running_loop()
        outcomes: list[Outcome] = []
        for envelope in envelopes:
            try:
                self._check_payload(envelope.header_bytes + len(envelope.data))
            except MaxPayload as error:
                outcomes.append(error)
                continue
            self._number += 1
            entry = _Publish(envelope, f"p{self._number}", loop.create_future())
            if len(self._published) >= self._sweep_at:
                # Whose caller stopped waiting, and whose answer never came.
                self._published = {token: one for token, one in self._published.items() if not one.future.done()}
                self._sweep_at = max(4096, 2 * len(self._published))
            self._published[entry.token] = entry
            self._post(entry)
            outcomes.append(entry.future)
        return outcomes

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await delivery.ack()

    def _check_payload(self, size: int) -> None:
        limit = self._client.max_payload if self._client is not None else MAX_PAYLOAD
        if size > limit:
            raise MaxPayload(f"{size} bytes are more than {limit}")

    def _post(self, entry: _Publish) -> None:
        self._outgoing.append(entry)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _send_all(self) -> None:
        """One task writes what was submitted, in order; nats-py joins what is written in one turn of the loop."""
        loop = asyncio.get_running_loop()
        while True:
            while self._outgoing:
                entry = self._outgoing.popleft()
                if entry.future.done():
                    continue
                one = entry.envelope
                try:
                    reply = f"{self._inbox}.{entry.token}"
                    await self.send(one.subject, one.data, reply=reply, headers=one.headers)
                except (Disconnected, MaxPayload, InvalidHeader) as error:
                    self._published.pop(entry.token, None)
                    entry.future.set_exception(error)
            self._wake = loop.create_future()
            await self._wake

    def _acknowledged(self, entry: _Publish, message: Msg) -> None:
        if not message.data and message.headers and message.headers.get("Status") == NO_RESPONDERS:
            if entry.tries < PUBLISH_RETRIES and not entry.future.done():
                entry.tries += 1
                asyncio.get_running_loop().call_later(PUBLISH_PAUSE, self._again, entry)
                return
            outcome: PubAck | Exception = NoStream(f"no stream takes {entry.envelope.subject}")
        else:
            answer = _answer.decode(message.data)
            if answer.error is not None:
                error = answer.error
                outcome = PublishRefused(error.err_code, error.description, status=error.code)
            else:
                outcome = PubAck(answer.stream, answer.seq, answer.duplicate)
        del self._published[entry.token]
        if entry.future.done():
            return
        if isinstance(outcome, PubAck):
            entry.future.set_result(outcome)
        else:
            entry.future.set_exception(outcome)

    def _again(self, entry: _Publish) -> None:
        if entry.token in self._published:
            self._post(entry)

    async def settled(self, ack: PubAck) -> None:
        return

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
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        if self._deaf is not None:
            raise self._deaf
        subject, acked = self.next_subject(stream, consumer), b""
        if acking is not None:
            assert isinstance(acking, WireDelivery)
            acking.settle()
            subject, acked = acking.reply, b"+NXT "
        pull = Pull(self, subject, max(1, batch), acked)
        self._pulls.add(pull)
        try:
            return await pull.collect(
                expires=expires,
                no_wait=no_wait,
                max_bytes=max_bytes,
                heartbeat=heartbeat,
            )
        finally:
            self._pulls.discard(pull)

    async def consume(self, stream: str, consumer: str, *, prefetch: int, expires: float = 5.0) -> Consumption:
        check_name(stream)
        check_name(consumer)
        consumption = JetStreamConsumption(self, stream, consumer, prefetch, expires, self._consumptions.discard)
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

    # -- core

    async def core_publish(
        self, subject: str, data: bytes, headers: Headers | None = None, *, reply: str | None = None
    ) -> None:
        check_subject(subject)
        self._check_payload(check_headers(headers or _NO_HEADERS) + len(data))
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        await self.send(subject, data, reply=reply or "", headers=headers)

    async def subscribe(self, subject: str, handler: CoreHandler, *, queue: str | None = None) -> Subscription:
        check_subject(subject, literal=False)
        loop = asyncio.get_running_loop()

        async def received(message: Msg) -> None:
            try:
                await handler(_core_message(message))
            except Exception as error:
                # One bad message must not end the subscription; the loop's handler reports it.
                loop.call_exception_handler({"message": f"a core handler failed: {subject}", "exception": error})

        return await self._listen_surely(subject, received, queue, interface.CORE_PENDING)

    async def request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, *, timeout: float
    ) -> CoreMessage:
        check_subject(subject)
        self._check_payload(check_headers(headers or _NO_HEADERS) + len(data))
        return _core_message(await self.ask(subject, data, headers, timeout))


def _core_message(message: Msg) -> CoreMessage:
    return CoreMessage(
        subject=message.subject, data=message.data, headers=message.headers or {}, reply=message.reply or None
    )
