"""What an operator sees of the bus and may do to it: streams, consumers, dead letters, pods. Behind an API key."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import structlog
from litestar import Controller, Request, Response, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery, PathParameter, QueryParameter
from msgspec import Struct

from nebengjek.bus.dead_letters import DeadLetter
from nebengjek.bus.errors import ApiError, NotPermitted
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import ConsumerInfo, StreamInfo
from nebengjek.bus.subjects import check_subject
from nebengjek.errors import Conflict, Forbidden, Invalid, NebengJekError, NotFound
from nebengjek.web import exception_handlers

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Any]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
After = Annotated[int, QueryParameter(ge=0, le=2**53)]
Seq = Annotated[int, PathParameter(ge=1, le=2**53)]
Keep = Annotated[int | None, QueryParameter(ge=0, le=2**53)]
UpTo = Annotated[int | None, QueryParameter(ge=1, le=2**53)]
Seconds = Annotated[float, QueryParameter(gt=0, le=7 * 86400)]

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
    """``pending``: not delivered yet; ``lag``: not settled yet, pending or under way. ``orphan``: nobody wants it.

    ``paused_until``: nothing is delivered before.
    """

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


class Purged(Struct, frozen=True, kw_only=True):
    """``purged``: how many messages were removed."""

    name: str
    purged: int


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

    @post("/streams/{name:str}/purge", status_code=200, summary="Remove messages from a stream")
    async def purge_stream(
        self, name: FromPath[str], subject: FromQuery[str | None] = None, keep: Keep = None, up_to: UpTo = None
    ) -> Purged:
        """All of them; of a subject (``ride.pickup.*``); all but the newest ``keep``; those below ``up_to``.

        What consumers have not settled yet is gone for them too.
        """
        if keep is not None and up_to is not None:
            raise Invalid("keep and up_to: expected one of them")
        if subject is not None:
            check_subject(subject, literal=False)
        await self._info(name)
        purged = await self.bus.broker.purge_stream(name, subject=subject, keep=keep, up_to=up_to)
        log.info("stream.purged", stream=name, subject=subject, purged=purged)
        return Purged(name=name, purged=purged)

    @delete("/streams/{name:str}", status_code=200, summary="Delete a stream with all that it holds")
    async def delete_stream(self, name: FromPath[str], force: FromQuery[bool] = False) -> StreamRow:
        """409 for a stream of the application; with ``force`` it is deleted too, and made again at once, empty."""
        info = await self._info(name)
        ours = name in self.bus.stream_names
        if ours and not force:
            raise Conflict(f"{name} is wanted: the application publishes to it (force deletes it and makes a new one)")
        await self.bus.broker.delete_stream(name)
        log.warning("stream.deleted", stream=name, messages=info.messages)
        if ours:
            await self.bus.ensure()
        return StreamRow(**_stream(info))

    @get("/consumers", summary="Every durable consumer, how far it is behind")
    async def consumers(self, stream: FromQuery[str | None] = None) -> Consumers:
        if stream is not None:
            await self._info(stream)
        names = [stream] if stream is not None else [info.spec.name for info in await self.bus.broker.streams()]
        return Consumers(items=await self._consumers(sorted(names)))

    @get("/consumers/{stream:str}/{name:str}", summary="One consumer: how it is set, how far it is")
    async def consumer(self, stream: FromPath[str], name: FromPath[str]) -> ConsumerRow:
        return await self._row(stream, name)

    @delete("/consumers/{stream:str}/{name:str}", status_code=200, summary="Delete a consumer that no module wants")
    async def delete_consumer(
        self, stream: FromPath[str], name: FromPath[str], force: FromQuery[bool] = False
    ) -> ConsumerRow:
        """409 when a module hears through it.

        With ``force`` it is deleted too: the module's pods make it again behind what they know to be settled; what an
        interest stream kept for it alone is lost.
        """
        row = await self._row(stream, name)
        if not row.orphan and not force:
            raise Conflict(f"{name} is wanted: a module hears through it")
        await self.bus.broker.delete_consumer(stream, name)
        log.info("consumer.deleted", stream=stream, consumer=name)
        return row

    @post("/consumers/{stream:str}/{name:str}/pause", status_code=200, summary="Deliver nothing for a while")
    async def pause_consumer(self, stream: FromPath[str], name: FromPath[str], seconds: Seconds = 600.0) -> ConsumerRow:
        """What is under way is still settled, or comes again after the pause."""
        return await self._pause(stream, name, datetime.now(UTC) + timedelta(seconds=seconds))

    @post("/consumers/{stream:str}/{name:str}/resume", status_code=200, summary="End a pause")
    async def resume_consumer(self, stream: FromPath[str], name: FromPath[str]) -> ConsumerRow:
        return await self._pause(stream, name, None)

    async def _pause(self, stream: str, name: str, until: datetime | None) -> ConsumerRow:
        await self._row(stream, name)
        await self.bus.broker.pause_consumer(stream, name, until)
        log.info("consumer.paused", stream=stream, consumer=name, until=until.isoformat() if until else None)
        return await self._row(stream, name)

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

    async def _row(self, stream: str, name: str) -> ConsumerRow:
        await self._info(stream)
        row = next((row for row in await self._consumers([stream]) if row.name == name), None)
        if row is None:
            raise NotFound(f"there is no consumer {name[:64]} on {stream}")
        return row

    async def _consumers(self, streams: Sequence[str]) -> list[ConsumerRow]:
        orphans = set(await self.bus.orphans())
        rows = [_consumer(info, orphans) for name in streams for info in await self.bus.broker.consumers(name)]
        return sorted(rows, key=lambda row: (row.stream, row.name))


def admin_routes(bus: MessageBus, pods: Callable[[], Sequence[Any]], guard: Guard) -> Router:
    """``pods``: the heartbeats heard lately; ``guard`` refuses everybody who is no operator."""
    controller = type("BusOperators", (Operators,), {"bus": bus, "pods": staticmethod(pods)})
    handlers: Any = {NotPermitted: _not_permitted, ApiError: _refused}
    return Router(path="/", route_handlers=[controller], guards=[guard], exception_handlers=handlers)


def _not_permitted(request: Request[Any, Any, Any], error: NotPermitted) -> Response[Any]:
    text = f"{error}: ask a pod that runs as the user operator (nebengjek run --modules operator)"
    answer: Response[Any] = exception_handlers[NebengJekError](request, Forbidden(text))
    return answer


def _refused(request: Request[Any, Any, Any], error: ApiError) -> Response[Any]:
    """The server's word: something is not as it was a moment ago, or it does not do such a thing."""
    answer: Response[Any] = exception_handlers[NebengJekError](request, Conflict(f"the bus refused: {error}"))
    return answer


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
