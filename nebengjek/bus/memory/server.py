"""What a nats-server is, in this process: it outlives its connections, and ``restart`` keeps file streams."""

import itertools
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from nebengjek.bus.errors import ApiError, PublishRefused
from nebengjek.bus.interface import Allowance
from nebengjek.bus.memory.clock import BrokerClock, LoopClock
from nebengjek.bus.memory.consumer import MemoryConsumer
from nebengjek.bus.memory.core import CoreRouter
from nebengjek.bus.memory.push import FLOW_PREFIX, heard_by_consumer
from nebengjek.bus.memory.quota import Quota
from nebengjek.bus.memory.stream import MemoryStream
from nebengjek.bus.memory.subjects import SubjectTable
from nebengjek.bus.messages import Envelope, Headers, check_headers
from nebengjek.bus.specs import Storage, StreamSpec
from nebengjek.bus.subjects import subjects_collide
from nebengjek.bus.times import rfc3339
from nebengjek.bus.wire_delivery import ACK_PREFIX


class Attached(ABC):
    """A connection, as its server sees it."""

    @abstractmethod
    def lost(self) -> None:
        """The connection breaks: what waits on it ends."""

    @abstractmethod
    def found(self) -> None:
        """The server is there again."""


class MemoryServer:
    """Streams, consumers and who listens.

    ``clock``: real time, or a ``VirtualClock`` that a test moves. ``allowed``: what may be used, without a limit unless
    it is said.
    """

    def __init__(self, clock: BrokerClock | None = None, allowed: Allowance | None = None) -> None:
        self.clock = clock or LoopClock()
        self.running = True
        self.core = CoreRouter()
        self.quota = Quota(allowed, lambda: [one.info() for one in self.streams()]) if allowed is not None else None
        self._streams: dict[str, MemoryStream] = {}
        self._takers: SubjectTable[MemoryStream] = SubjectTable()
        self._connections: set[Attached] = set()
        self._numbers = itertools.count(1)

    # -- life

    def stop(self) -> None:
        """The server goes away: connections are lost, memory streams too."""
        self.running = False
        for connection in list(self._connections):
            connection.lost()
        for stream in [one for one in self._streams.values() if one.spec.storage is Storage.MEMORY]:
            self._remove(stream)
        for stream in self._streams.values():
            stream.restarted()

    def start(self) -> None:
        """The server is back, with its file streams; connections return."""
        self.running = True
        for connection in list(self._connections):
            connection.found()

    def restart(self) -> None:
        self.stop()
        self.start()

    def attach(self, connection: Attached) -> None:
        self._connections.add(connection)

    def detach(self, connection: Attached) -> None:
        self._connections.discard(connection)

    # -- messages

    def route(self, subject: str) -> MemoryStream | None:
        found = self._takers.match(subject)
        return found[0] if found else None

    def by_prefix(self, prefix: str, stream: MemoryStream | None) -> bool:
        """Is all but a subject's last token enough to know who listens and who takes it in ``stream``?"""
        return (
            self._takers.by_prefix(prefix)
            and self.core.by_prefix(prefix)
            and (stream is None or stream.takers.by_prefix(prefix))
        )

    def publish_core(self, subject: str, data: bytes, headers: Headers, reply: str | None) -> bool:
        """To whoever listens, and to the stream that takes the subject; False when neither exists."""
        if subject.startswith((ACK_PREFIX, FLOW_PREFIX)) and heard_by_consumer(
            self.find_consumer, self.core, subject, data, reply
        ):
            return True
        heard = self.core.deliver(subject, data, headers, reply)
        stream = self.route(subject)
        if stream is None:
            return heard
        try:
            envelope = Envelope(subject, data, headers, check_headers(headers))
            ack = stream.publish(envelope, stream.takers.match(subject), self.clock.time())
            answer: dict[str, Any] = {"stream": ack.stream, "seq": ack.seq}
            if ack.duplicate:
                answer["duplicate"] = True
        except PublishRefused as refused:
            error = {"code": refused.status, "err_code": refused.code, "description": refused.description}
            answer = {"error": error, "stream": stream.name, "seq": 0}
        if reply is not None:
            self.core.deliver(reply, msgspec.json.encode(answer), {}, None)
        return True

    def new_inbox(self) -> str:
        return f"_INBOX.{next(self._numbers)}"

    def advise(self, subject: str, body: Callable[[], dict[str, Any]]) -> None:
        """Say it to whoever listens to ``$JS.EVENT.ADVISORY.<subject>``; nothing is made where nobody does."""
        subject = f"$JS.EVENT.ADVISORY.{subject}"
        if self.core.listened(subject) or self.route(subject) is not None:
            moment = rfc3339(datetime.fromtimestamp(self.clock.time(), UTC))
            said = body() | {"id": secrets.token_hex(11), "timestamp": moment}
            self.publish_core(subject, msgspec.json.encode(said), {}, None)

    def _advise_stream(self, name: str, kind: str, action: str) -> None:
        kind_of = "io.nats.jetstream.advisory.v1.stream_action"
        self.advise(f"STREAM.{kind}.{name}", lambda: {"type": kind_of, "stream": name, "action": action})

    # -- streams

    def stream(self, name: str) -> MemoryStream:
        """Raises ApiError 10059."""
        stream = self._streams.get(name)
        if stream is None:
            raise ApiError(10059, "stream not found", status=404)
        return stream

    def streams(self) -> list[MemoryStream]:
        return sorted(self._streams.values(), key=lambda stream: stream.name)

    def create_stream(self, spec: StreamSpec) -> MemoryStream:
        """``spec`` was checked. Raises ApiError 10058, 10065, and what ``Quota.check_stream`` says."""
        existing = self._streams.get(spec.name)
        if existing is not None:
            if existing.spec != spec:
                raise ApiError(10058, "stream name already in use with a different configuration")
            return existing
        self._check_overlap(spec)
        if self.quota is not None:
            self.quota.check_stream(spec)
        stream = self._streams[spec.name] = MemoryStream(spec, self.clock, self.advise, self.core, self.quota)
        self._enter(stream)
        self._advise_stream(spec.name, "CREATED", "create")
        return stream

    def update_stream(self, spec: StreamSpec) -> MemoryStream:
        """``spec`` was checked. Raises ApiError 10052, 10059, 10065."""
        stream = self.stream(spec.name)
        self._check_overlap(spec)
        if self.quota is not None:
            self.quota.check_stream(spec)
        stream.update(spec)
        self._takers.remove(stream)
        self._enter(stream)
        self._advise_stream(spec.name, "UPDATED", "modify")
        return stream

    def _check_overlap(self, spec: StreamSpec) -> None:
        for other in self._streams.values():
            if other.name != spec.name and any(
                subjects_collide(one, two) for one in spec.subjects for two in other.spec.subjects
            ):
                raise ApiError(10065, "subjects overlap with an existing stream")

    def _enter(self, stream: MemoryStream) -> None:
        for pattern in stream.spec.subjects:
            self._takers.add(pattern, stream)

    def delete_stream(self, name: str) -> None:
        """Raises ApiError 10059."""
        stream = self.stream(name)
        for consumer in list(stream.consumers):
            stream.delete_consumer(consumer)
        self._remove(stream)
        self._advise_stream(name, "DELETED", "delete")

    def _remove(self, stream: MemoryStream) -> None:
        self._takers.remove(stream)
        del self._streams[stream.name]
        stream.close()

    def consumer(self, stream: str, name: str) -> MemoryConsumer:
        """Raises ApiError 10059, 10014."""
        consumer = self.stream(stream).consumers.get(name)
        if consumer is None:
            raise ApiError(10014, "consumer not found", status=404)
        return consumer

    def find_consumer(self, stream: str, name: str) -> MemoryConsumer | None:
        found = self._streams.get(stream)
        return found.consumers.get(name) if found is not None else None
