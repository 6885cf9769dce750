"""What an operator sees of the bus and may do to it: streams, consumers, dead letters, pods. Behind an API key."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

import structlog
from litestar import Controller, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery, PathParameter, QueryParameter
from msgspec import Struct

from nebengjek.bus.dead_letters import DeadLetter
from nebengjek.bus.interface import ApiError, ConsumerInfo, StreamInfo
from nebengjek.bus.messaging import MessageBus
from nebengjek.errors import Conflict, NotFound

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Any]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
After = Annotated[int, QueryParameter(ge=0, le=2**53)]
Seq = Annotated[int, PathParameter(ge=1, le=2**53)]

UNKNOWN_STREAM, UNKNOWN_CONSUMER = 10059, 10014

log = structlog.stdlib.get_logger("nebengjek.admin")


class StreamRow(Struct, frozen=True, kw_only=True):
    """Sizes in bytes, ``max_age`` in seconds."""

    name: str
    subjects: list[str]
    retention: str
    storage: str
    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    consumers: int
    max_age: float
    max_bytes: int
    max_msgs: int
    replicas: int


class ConsumerRow(Struct, frozen=True, kw_only=True):
    """``pending``: not delivered yet; ``lag``: not settled yet, pending or under way. ``orphan``: nobody wants it."""

    stream: str
    name: str
    filters: list[str]
    pending: int
    ack_pending: int
    redelivered: int
    waiting: int
    lag: int
    delivered_seq: int
    ack_floor_seq: int
    max_deliver: int
    ack_wait: float
    paused_until: datetime | None
    orphan: bool


class StreamDetails(StreamRow, frozen=True, kw_only=True):
    consumer_list: list[ConsumerRow]


class Streams(Struct, frozen=True, kw_only=True):
    items: list[StreamRow]


class Consumers(Struct, frozen=True, kw_only=True):
    items: list[ConsumerRow]


class DeadLetterPage(Struct, frozen=True, kw_only=True):
    """``next_after``: give it as ``after`` for the next page; null on the last."""

    items: list[DeadLetter]
    next_after: int | None


class PodList(Struct, frozen=True, kw_only=True):
    items: list[Any]


class Operators(Controller):
    """``bus`` and ``pods`` are set by ``admin_routes``."""

    path = "/admin"
    tags = ["admin"]
    bus: MessageBus
    pods: Callable[[], Sequence[Any]]

    @get("/streams", summary="Every stream, how full it is")
    async def streams(self) -> Streams:
        infos = await self.bus.broker.streams()
        return Streams(items=sorted((StreamRow(**_stream(info)) for info in infos), key=lambda row: row.name))

    @get("/streams/{name:str}", summary="One stream and its consumers")
    async def stream(self, name: FromPath[str]) -> StreamDetails:
        info = await self._info(name)
        return StreamDetails(**_stream(info), consumer_list=await self._consumers([name]))

    @get("/consumers", summary="Every durable consumer, how far it is behind")
    async def consumers(self, stream: FromQuery[str | None] = None) -> Consumers:
        if stream is not None:
            await self._info(stream)
        names = [stream] if stream is not None else [info.spec.name for info in await self.bus.broker.streams()]
        return Consumers(items=await self._consumers(sorted(names)))

    @delete("/consumers/{stream:str}/{name:str}", status_code=200, summary="Delete a consumer that no module wants")
    async def delete_consumer(self, stream: FromPath[str], name: FromPath[str]) -> ConsumerRow:
        """409 when a module hears through it: its messages would be lost."""
        await self._info(stream)
        row = next((row for row in await self._consumers([stream]) if row.name == name), None)
        if row is None:
            raise NotFound(f"there is no consumer {name} on {stream}")
        if not row.orphan:
            raise Conflict(f"{name} is wanted: a module hears through it")
        await self.bus.broker.delete_consumer(stream, name)
        log.info("consumer.deleted", stream=stream, consumer=name)
        return row

    @get("/dead-letters", summary="What could not be handled, oldest first")
    async def dead_letters(self, limit: Limit = 100, after: After = 0) -> DeadLetterPage:
        found = await self.bus.dead_letters.list(limit + 1, after)
        page = found[:limit]
        return DeadLetterPage(items=page, next_after=page[-1].seq if len(found) > limit else None)

    @get("/dead-letters/{seq:int}", summary="One dead letter with its cause, headers and body")
    async def dead_letter(self, seq: Seq) -> DeadLetter:
        return await self.bus.dead_letters.show(seq)

    @post("/dead-letters/{seq:int}/replay", status_code=200, summary="Deliver it again to the consumer that failed")
    async def replay(self, seq: Seq) -> DeadLetter:
        letter = await self.bus.dead_letters.replay(seq)
        log.info("dead_letter.replayed", seq=seq, consumer=letter.consumer, subject=letter.subject)
        return letter

    @delete("/dead-letters/{seq:int}", status_code=200, summary="Forget it")
    async def drop(self, seq: Seq) -> DeadLetter:
        letter = await self.bus.dead_letters.drop(seq)
        log.info("dead_letter.dropped", seq=seq, consumer=letter.consumer, subject=letter.subject)
        return letter

    @get("/pods", summary="The processes that were heard lately")
    async def list_pods(self) -> PodList:
        return PodList(items=list(self.pods()))

    async def _info(self, name: str) -> StreamInfo:
        try:
            return await self.bus.broker.stream_info(name)
        except ApiError as error:
            if error.code == UNKNOWN_STREAM:
                raise NotFound(f"there is no stream {name[:64]}") from error
            raise

    async def _consumers(self, streams: Sequence[str]) -> list[ConsumerRow]:
        orphans = set(await self.bus.orphans())
        rows = [_consumer(info, orphans) for name in streams for info in await self.bus.broker.consumers(name)]
        return sorted(rows, key=lambda row: (row.stream, row.name))


def admin_routes(bus: MessageBus, pods: Callable[[], Sequence[Any]], guard: Guard) -> Router:
    """``pods``: the heartbeats heard lately; ``guard`` refuses everybody who is no operator."""
    controller = type("BusOperators", (Operators,), {"bus": bus, "pods": staticmethod(pods)})
    return Router(path="/", route_handlers=[controller], guards=[guard])


def _stream(info: StreamInfo) -> dict[str, Any]:
    spec = info.spec
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": spec.retention.value,
        "storage": spec.storage.value,
        "messages": info.messages,
        "bytes": info.bytes,
        "first_seq": info.first_seq,
        "last_seq": info.last_seq,
        "consumers": info.consumers,
        "max_age": spec.max_age,
        "max_bytes": spec.max_bytes,
        "max_msgs": spec.max_msgs,
        "replicas": spec.replicas,
    }


def _consumer(info: ConsumerInfo, orphans: set[str]) -> ConsumerRow:
    return ConsumerRow(
        stream=info.stream,
        name=info.name,
        filters=list(info.spec.filters),
        pending=info.num_pending,
        ack_pending=info.num_ack_pending,
        redelivered=info.num_redelivered,
        waiting=info.num_waiting,
        lag=info.num_pending + info.num_ack_pending,
        delivered_seq=info.delivered.stream,
        ack_floor_seq=info.ack_floor.stream,
        max_deliver=info.spec.max_deliver,
        ack_wait=info.spec.ack_wait,
        paused_until=info.paused_until,
        orphan=f"{info.stream}/{info.name}" in orphans,
    )
