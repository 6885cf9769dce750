"""The broker on a nats-server with JetStream: the only file that knows nats-py, and only its core and the JSON API.

nats-py's own JetStream layer is not used: its fetch misses messages over a restart and takes a deleted consumer for a
timeout. Connecting, requests, publishing and core messages are here, over 300 lines because they share one connection
and one inbox; pulling is in jetstream_pull.py, JSON in jetstream_wire.py.
"""

import asyncio
import secrets
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast
from urllib.parse import urlsplit

import msgspec
import structlog
from msgspec import Struct
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from nebengjek.bus.checks import check_consumer, check_consumer_change, check_stream, check_stream_change
from nebengjek.bus.interface import (
    MAX_PAYLOAD,
    Batch,
    Broker,
    ConnectionStatus,
    ConsumerInfo,
    ConsumerSpec,
    Consumption,
    CoreHandler,
    CoreMessage,
    Disconnected,
    Headers,
    InvalidHeader,
    MaxPayload,
    NoResponders,
    NoStream,
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
from nebengjek.bus.jetstream_pull import JetStreamConsumption, Link, Listener, Pull, Received
from nebengjek.bus.jetstream_wire import (
    Json,
    check_response,
    consumer_config,
    consumer_info,
    rfc3339,
    stored_message,
    stream_config,
    stream_info,
    stream_spec,
)
from nebengjek.errors import Misconfigured

NO_RESPONDERS = "503"
PUBLISH_RETRIES, PUBLISH_PAUSE = 2, 0.25
"""A publish that finds no responders is tried again (ADR-22): a stream's leader may just be changing."""
CLOSE_PATIENCE = 2.0
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
    __slots__ = ("data", "future", "headers", "subject", "token", "tries")

    def __init__(self, subject: str, data: bytes, headers: Headers, token: str, future: asyncio.Future[PubAck]) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.token = token
        self.future = future
        self.tries = 0


class _Listening(Listener, Subscription):
    """One subscription of ours, on whichever client is the present one."""

    def __init__(self, broker: "JetStreamBroker", subject: str, received: Received, queue: str) -> None:
        self.subject = subject
        self.received = received
        self.queue = queue
        self._broker = broker
        self._client: Client | None = None
        self._there: NatsSubscription | None = None

    async def attach(self, client: Client) -> None:
        if self._client is not client:
            self._client = client
            self._there = await client.subscribe(self.subject, queue=self.queue, cb=self.received)

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


class JetStreamBroker(Broker, Link):
    """A connection to a nats-server, for ever: it is made again whenever it breaks, each ``reconnect_wait`` seconds.

    ``url``: one or several servers. ``user`` with ``password``, ``token`` or ``credentials`` (a file) say who we are.
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
        connect_timeout: float = 5.0,
        reconnect_wait: float = 2.0,
        request_timeout: float = 5.0,
    ) -> None:
        self._servers = [part.strip() for part in url.split(",")] if isinstance(url, str) else list(url)
        self._options: dict[str, Any] = {
            "name": name,
            "user": user,
            "password": password,
            "token": token,
            "user_credentials": credentials,
            "tls": tls,
            "tls_hostname": tls_hostname,
            "connect_timeout": connect_timeout,
            "reconnect_time_wait": reconnect_wait,
            "max_reconnect_attempts": -1,
            "ping_interval": 20,
        }
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
        self._status_listeners: list[Callable[[ConnectionStatus], None]] = []
        self._listening: set[_Listening] = set()
        self._background: set[asyncio.Future[None]] = set()
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._number = 0
        self._published: dict[str, _Publish] = {}
        self._sweep_at = 4096
        self._outgoing: deque[_Publish] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._asked: dict[str, asyncio.Future[Msg]] = {}
        self._pulls: set[Pull] = set()
        self._consumptions: set[JetStreamConsumption] = set()

    @classmethod
    def from_settings(cls, settings: NatsOptions, *, name: str) -> "JetStreamBroker":
        """From the settings' table; without TLS files a ``tls://`` server is checked by the system's authorities."""
        tls: ssl.SSLContext | None = None
        if settings.tls_ca or settings.tls_cert:
            tls = ssl.create_default_context(cafile=settings.tls_ca)
            if settings.tls_cert:
                tls.load_cert_chain(settings.tls_cert, settings.tls_key)
        return cls(
            settings.url or "nats://127.0.0.1:4222",
            name=name,
            user=settings.user,
            password=settings.password,
            token=settings.token,
            credentials=settings.credentials,
            tls=tls,
            domain=settings.domain,
            connect_timeout=settings.connect_timeout,
        )

    # -- connection

    async def connect(self) -> None:
        if self._keeper is not None:
            return
        self._keeper = asyncio.create_task(self._keep_connected(), name="nats connection")
        tried = asyncio.create_task(self._tried.wait())
        await asyncio.wait((self._keeper, tried), timeout=self._connect_timeout, return_when=asyncio.FIRST_COMPLETED)
        tried.cancel()
        if self._keeper.done():
            # Only a mistake of ours ends it, such as a malformed address.
            await self._keeper

    async def _keep_connected(self) -> None:
        while True:
            client = self._client = Client()
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
                    **self._options,
                )
            except Exception as error:
                # The network's failures are tried again in there: this is a setting that cannot work. Whoever
                # called connect hears of it; afterwards nobody would, and it may be mended on the other side.
                self._client = None
                if not self._tried.is_set():
                    raise Misconfigured(f"NATS at {self.where}: {type(error).__name__}: {error}") from error
                log.error("nats.not_connected", exc_info=error)
                await asyncio.sleep(self._reconnect_wait)
                continue
            await self._listen_all(client)
            if client.is_connected:
                await self._on_connected()
            await closed.wait()
            # The client gave up, as it does when the server refuses us: begin anew.
            await self._on_disconnected()
            await asyncio.sleep(self._reconnect_wait)

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
        if self._status is ConnectionStatus.UP:
            self._become(ConnectionStatus.DOWN)
        self._fail_outstanding()

    async def _on_error(self, error: Exception) -> None:
        self._tried.set()
        if isinstance(error, nats_errors.SlowConsumerError):
            log.error("nats.slow_consumer", subject=error.subject)
            return
        text = f"{type(error).__name__}: {error}"
        if text not in self._complaints and self._status is not ConnectionStatus.UP:
            # Once until it is back: a refused password or name must be seen, sixty tries a minute need not.
            self._complaints.add(text)
            log.warning("nats.away", where=self.where, error=text)

    def _fail_outstanding(self) -> None:
        published, self._published = self._published, {}
        self._outgoing.clear()
        futures: list[asyncio.Future[Any]] = [entry.future for entry in published.values()]
        futures += self._asked.values()
        for future in futures:
            if not future.done():
                future.set_exception(Disconnected("bus"))
        for pull in self._pulls:
            pull.end(PullStatus.DISCONNECTED)
        for consumption in self._consumptions:
            consumption.lost()

    def _become(self, status: ConnectionStatus) -> None:
        if self._status in (status, ConnectionStatus.CLOSED):
            return
        self._status = status
        if status is ConnectionStatus.UP:
            self._tried.set()
            self._complaints.clear()
            self._up.set()
        else:
            self._up.clear()
        for listener in self._status_listeners:
            listener(status)

    async def close(self) -> None:
        if self._status is ConnectionStatus.CLOSED:
            return
        for consumption in list(self._consumptions):
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
        tasks = [task for task in (self._keeper, self._sender) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
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
        return ", ".join(_without_credentials(url) for url in ([present] if present else self._servers))

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

    async def _listen(self, subject: str, received: Received, queue: str) -> _Listening:
        listening = _Listening(self, subject, received, queue)
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
        self._number += 1
        token = f"r{self._number}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._asked[token] = answer
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
        elif (answer := self._asked.get(token)) is not None and not answer.done():
            answer.set_result(message)

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
        check_stream(spec)
        return stream_info(await self._call(f"STREAM.CREATE.{spec.name}", stream_config(spec)))

    async def update_stream(self, spec: StreamSpec) -> StreamInfo:
        check_stream(spec)
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
        body = {"stream_name": stream, "config": consumer_config(spec), "action": action}
        name = f".{spec.name}" if spec.name is not None else ""
        return consumer_info(await self._call(f"CONSUMER.CREATE.{stream}{name}", body))

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

    def submit(self, subject: str, data: bytes, headers: Headers) -> asyncio.Future[PubAck]:
        check_subject(subject)
        self._check_payload(check_headers(headers) + len(data))
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        if self._status is not ConnectionStatus.UP:
            future.set_exception(Disconnected("bus"))
            return future
        self._number += 1
        entry = _Publish(subject, data, headers, f"p{self._number}", future)
        if len(self._published) >= self._sweep_at:
            # Whose caller stopped waiting, and whose answer never came.
            self._published = {token: one for token, one in self._published.items() if not one.future.done()}
            self._sweep_at = max(4096, 2 * len(self._published))
        self._published[entry.token] = entry
        self._post(entry)
        return future

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
                try:
                    reply = f"{self._inbox}.{entry.token}"
                    await self.send(entry.subject, entry.data, reply=reply, headers=entry.headers)
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
            outcome: PubAck | Exception = NoStream(f"no stream takes {entry.subject}")
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
    ) -> Batch:
        check_name(stream)
        check_name(consumer)
        if heartbeat is not None and (expires is None or heartbeat * 2 > expires):
            raise ValueError("a heartbeat needs an expiry of at least twice its length")
        if self._status is not ConnectionStatus.UP:
            raise Disconnected("bus")
        pull = Pull(self, max(1, batch))
        self._pulls.add(pull)
        try:
            return await pull.collect(
                self.next_subject(stream, consumer),
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

        listening = await self._listen(subject, received, queue or "")
        if self._status is ConnectionStatus.UP and self._attached is not None:
            # Subscribed means that the server knows it.
            try:
                await self._attached.flush()
            except nats_errors.Error as error:
                log.debug("nats.not_flushed", error=f"{type(error).__name__}: {error}")
        return listening

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


def _without_credentials(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 4222}"
