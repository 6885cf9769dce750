"""The workers' side: a question in, its answer out in chunks, to the pods that hold its readers.

Questions are shared by all workers of the durable ``workflow-processor``. An attempt is counted in the question's row,
so of two workers that answer it at once (one was believed dead) only the later one's answer is stored, and its chunks
begin with a marker that ends the others'. The answer is stored, once, before its final chunk is said.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

import msgspec
import structlog
from msgspec import Raw, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.errors import BusError
from nebengjek.bus.gathering import Gatherer
from nebengjek.bus.handling import Context, Reject, Retry
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.database import Database
from nebengjek.errors import Forbidden, Unavailable
from nebengjek.realtime.delivery import Delivery
from nebengjek.realtime.presence import Presence
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.assistants.interface import Assistant, AssistantFailed, Question, Said, Used
from nebengjek_plugins.chat.contracts import (
    ATTEMPT,
    RESTART,
    ChatAnswered,
    ChunkBatch,
    ChunkError,
    ChunkMetadata,
    Message,
    ResendRequest,
    ResponseChunk,
    WorkflowRequest,
    storable,
)
from nebengjek_plugins.chat.measures import Measures
from nebengjek_plugins.chat.service import ChatService
from nebengjek_plugins.chat.settings import ChatSettings
from nebengjek_plugins.chat.store import Session
from nebengjek_plugins.chat.tools import UserTools

PIECE = 2000
"""Characters of a chunk at most."""
LOOK_SECONDS = 0.5
"""How long the pods of a session's readers are believed to be the same."""
KEPT_ANSWERS = 500
"""Answers whose chunks can be said again, the latest ones."""
MOST_TOKENS = 10**9
DECIDED_AT_ONCE = 8
"""Answers that are begun or stored at the same time: a few quickly, not all slowly."""
BATCHES_A_SECOND = 1000
"""Of all the answers of a process: from the 51st answer at once on, the 50 ms of each become longer."""
PUBLISH_TRIES = 3
PUBLISH_PAUSE = 0.1

log = structlog.stdlib.get_logger("nebengjek.chat")


class Pods:
    """Which pods hold the readers of a session: the registry's word, and what this process knows of itself."""

    def __init__(
        self, readers: Presence, delivery: Delivery, holds_here: Callable[[Session], bool], *, pod_id: str
    ) -> None:
        self._readers = readers
        self._delivery = delivery
        self._holds_here = holds_here
        self._pod_id = pod_id

    async def of(self, session: Session) -> set[str]:
        """Empty: nobody that the registry knows of. Raises Unavailable: it cannot be asked."""
        found = {self._pod_id} if self._holds_here(session) else set()
        for pods in (await self._readers.elsewhere([session.session_id])).values():
            found |= pods
        for pods in (await self._delivery.presence.elsewhere(session.parties)).values():
            found |= pods
        return found


class Speech:
    """The chunks of one attempt: numbered, gathered, said to the pods, and kept to be said again."""

    def __init__(
        self,
        bus: MessageBus,
        pods: Pods,
        clock: Clock,
        session: Session,
        request: WorkflowRequest,
        attempt: int,
        settings: ChatSettings,
        measures: Measures,
        load: Callable[[], int],
    ) -> None:
        """``load``: how many answers this process is giving."""
        self.chunks: list[ResponseChunk] = []
        self.first_id = (attempt - 1) * ATTEMPT
        self._bus = bus
        self._pods = pods
        self._clock = clock
        self._measures = measures
        self._session = session
        self._request = request
        self._load = load
        self._known: set[str] | None = set()
        """None: the registry cannot be asked."""
        self._known_at: float | None = None
        self._gatherer = Gatherer[ResponseChunk, list[ResponseChunk]](
            self._publish, list, self._gathering, size=settings.batch_chunks, seconds=settings.batch_seconds
        )

    async def say(
        self,
        text: str,
        *,
        chunk_type: str = "content",
        metadata: ChunkMetadata | None = None,
        error: ChunkError | None = None,
        is_final: bool = False,
    ) -> None:
        """The first words go at once, the next ones together with what else is said within 50 ms."""
        chunk = ResponseChunk(
            session_id=self._request.session_id,
            message_id=self._request.message_id,
            chunk_id=self.first_id + len(self.chunks),
            chunk=text,
            chunk_type="content",
            is_final=is_final,
            timestamp=self._clock.now(),
            correlation_id=self._request.correlation_id,
            metadata=metadata,
            error=error,
        )
        if chunk_type != "content":
            chunk = structs.replace(chunk, chunk_type=chunk_type)
        self.chunks.append(chunk)
        await self._gatherer.add(chunk)
        if is_final or len(self.chunks) == 1:
            await self._gatherer.flush()

    async def flush(self) -> None:
        await self._gatherer.flush()

    def joined(self, pod_id: str) -> None:
        """A pod has a reader who was not there when the registry was looked at."""
        if self._known is not None:
            self._known.add(pod_id)

    async def _gathering(self, seconds: float) -> None:
        """With many answers under way each is said in larger batches: or all the first words would be late."""
        await self._bus.broker.sleep(max(seconds, self._load() / BATCHES_A_SECOND))

    async def _publish(self, chunks: list[ResponseChunk]) -> None:
        batch = _batch(chunks)
        # Once, to however many pods it goes.
        self._measures.message_bytes.observe(memoryview(batch).nbytes)
        for subject in await self._subjects():
            await tell(self._bus, subject, batch)

    async def _subjects(self) -> list[str]:
        now = self._bus.broker.monotonic()
        if self._known_at is None or now - self._known_at >= LOOK_SECONDS:
            try:
                self._known = await self._pods.of(self._session)
            except Unavailable:
                self._known = None
            self._known_at = now
        if not self._known:
            return [f"chat.session.{self._session.session_id}.broadcast"]
        return [f"chat.pod.{pod_id}.response" for pod_id in sorted(self._known)]


def _batch(chunks: Sequence[ResponseChunk]) -> Raw:
    """A chunk by itself, or a ``ChunkBatch``: encoded once for all pods."""
    batch = chunks[0] if len(chunks) == 1 else ChunkBatch(session_id=chunks[0].session_id, chunks=list(chunks))
    return Raw(msgspec.json.encode(batch))


async def tell(bus: MessageBus, subject: str, batch: Raw) -> None:
    """Tried three times; who misses it asks for it again, or finds the answer in the database."""
    for number in range(1, PUBLISH_TRIES + 1):
        try:
            await bus.direct.tell(subject, batch)
        except (Unavailable, BusError) as error:
            if number == PUBLISH_TRIES or not isinstance(error, Unavailable):
                log.warning("chat.chunk_not_said", subject=subject, error=str(error))
                return
            await bus.broker.sleep(PUBLISH_PAUSE * number)
        else:
            return


class Worker:
    """``answer`` handles a question; ``resend`` says chunks again to a pod that misses them."""

    def __init__(
        self,
        bus: MessageBus,
        database: Database,
        clock: Clock,
        service: ChatService,
        pods: Pods,
        assistants: Mapping[str, Callable[[], Assistant]],
        settings: ChatSettings,
        measures: Measures,
    ) -> None:
        self._bus = bus
        self._measures = measures
        self._database = database
        self._clock = clock
        self._service = service
        self._pods = pods
        self._assistants = assistants
        self._settings = settings
        self._turns = asyncio.Semaphore(DECIDED_AT_ONCE)
        self._open = 0
        measures.under_way.set_function(lambda: self._open)
        self._speeches: OrderedDict[str, Speech] = OrderedDict()

    async def answer(self, request: WorkflowRequest, context: Context) -> None:
        """Returns when the answer is stored; raises what makes the question come again."""
        begun = await self._begin(request)
        if begun is None:
            return
        session, attempt = begun
        self._open += 1
        try:
            await self._answer(request, context, session, attempt)
        finally:
            self._open -= 1

    async def _answer(self, request: WorkflowRequest, context: Context, session: Session, attempt: int) -> None:
        speech = Speech(
            self._bus,
            self._pods,
            self._clock,
            session,
            request,
            attempt,
            self._settings,
            self._measures,
            lambda: self._open,
        )
        self._speeches[request.message_id] = speech
        self._speeches.move_to_end(request.message_id)
        while len(self._speeches) > KEPT_ANSWERS:
            self._speeches.popitem(last=False)
        if attempt > 1:
            self._measures.answered("restarted")
            await speech.say(RESTART, chunk_type="system")
        text: list[str] = []
        used = Used(model=request.context.model)
        try:
            async with aclosing(self._said(request)) as said:
                async for piece in said:
                    if isinstance(piece, Used):
                        used = piece
                        continue
                    if not text:
                        self._measures.first_words(request.timestamp)
                    text.append(piece.text)
                    for start in range(0, len(piece.text), PIECE):
                        self._measures.chunks.inc()
                        await speech.say(piece.text[start : start + PIECE])
        except AssistantFailed as error:
            await speech.flush()
            if error.again and context.deliveries < self._settings.tries:
                raise
            await self._failed(session, request, attempt, speech, "".join(text), used, error)
            raise Reject(str(error)) from error
        except BaseException:
            await speech.flush()
            raise
        await speech.flush()
        metadata = ChunkMetadata(
            model=used.model or None, tokens_used=used.tokens_used, finish_reason=used.finish_reason
        )
        if await self._store(session, request, attempt, "".join(text), metadata, None) is not None:
            self._measures.answered("complete", request.timestamp)
            await speech.say("", metadata=metadata, is_final=True)
        else:
            self._measures.answered("superseded")
            log.info("chat.superseded", message=request.message_id, attempt=attempt)
            if context.deliveries < self._settings.tries:
                # To settle the question would take it from whoever answers it now: should he die, it comes again.
                raise Retry(self._settings.redeliver_after)

    async def _begin(self, request: WorkflowRequest) -> tuple[Session, int] | None:
        """The question's session and the number of this attempt; None when it is answered.

        One that nobody stored (a bare publish) is stored now. Raises Forbidden: the session is somebody else's.
        """
        async with self._turns, self._database.begin() as tx:
            session = await store.session(tx, request.session_id)
            if session is not None and session.owner_id == request.user_id:
                attempt = await store.begin_attempt(tx, request.session_id, request.message_id)
                if attempt is not None:
                    return session, attempt
            return await self._begin_foreign(tx, request)

    async def _begin_foreign(self, tx: AsyncConnection, request: WorkflowRequest) -> tuple[Session, int] | None:
        """The same for a question that did not come by way of our own requests, or is answered."""
        now = self._clock.now()
        await store.make_session(tx, request.session_id, "desk", request.user_id, None, now)
        session = await store.session(tx, request.session_id)
        if session is None or session.owner_id != request.user_id:
            raise Forbidden("the session is somebody else's")
        row = await store.row_of(tx, request.message_id)
        if row is None:
            question = Message(
                message_id=request.message_id,
                session_id=request.session_id,
                number=await store.next_number(tx, request.session_id),
                role="user",
                text=request.message,
                status="complete",
                created_at=request.timestamp if request.timestamp.tzinfo is not None else now,
                correlation_id=request.correlation_id[:64],
                sender_id=request.user_id,
            )
            await store.add_message(tx, question, user_id=request.user_id, status="open")
        elif row.session_id != request.session_id:
            raise Forbidden("the question is of another session")
        attempt = await store.begin_attempt(tx, request.session_id, request.message_id)
        return None if attempt is None else (session, attempt)

    async def _said(self, request: WorkflowRequest) -> AsyncGenerator[Said | Used, None]:
        """The assistant's words, up to what an answer may be long. Raises AssistantFailed."""
        make = self._assistants.get(request.context.ai_provider)
        if make is None:
            raise AssistantFailed("NO_PROVIDER", f"no {request.context.ai_provider!r} here", again=False)
        tools = UserTools(
            self._bus,
            self._database,
            self._clock,
            user_id=request.user_id,
            session_id=request.session_id,
            message_id=request.message_id,
        )
        tokens = min(request.context.max_tokens, self._settings.max_tokens)
        question = Question(message=request.message, context=structs.replace(request.context, max_tokens=tokens))
        room = self._settings.max_answer
        used: Used | None = None
        try:
            async with aclosing(make().answer(question, tools)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Used):
                        used = structs.replace(piece, tokens_used=min(max(0, piece.tokens_used), MOST_TOKENS))
                        continue
                    if words := storable(piece.text[:room]):
                        yield Said(words)
                    room -= len(piece.text)
                    if room <= 0:
                        break
        except (AssistantFailed, Unavailable):
            raise
        except Exception as error:
            # A guest may fail in any way, a provider answer with anything: the question has to end all the same.
            log.warning("chat.assistant_failed", provider=request.context.ai_provider, exc_info=error)
            raise AssistantFailed("FAILED", type(error).__name__) from error
        # Who was cut short did not say what it cost: all that it might.
        used = used or Used(model=request.context.model, tokens_used=tokens if room <= 0 else 0)
        yield structs.replace(used, finish_reason="length") if room <= 0 else used

    async def _store(
        self,
        session: Session,
        request: WorkflowRequest,
        attempt: int,
        text: str,
        metadata: ChunkMetadata,
        error: str | None,
    ) -> Message | None:
        async with self._turns, self._database.begin() as tx:
            return await self._service.store_answer(
                tx,
                session,
                request.message_id,
                text,
                kind=ChatAnswered,
                attempt=attempt,
                metadata=metadata,
                error=error,
                correlation_id=request.correlation_id,
            )

    async def _failed(
        self,
        session: Session,
        request: WorkflowRequest,
        attempt: int,
        speech: Speech,
        text: str,
        used: Used,
        error: AssistantFailed,
    ) -> None:
        log.warning("chat.not_answered", message=request.message_id, code=error.code, attempt=attempt)
        metadata = ChunkMetadata(tokens_used=used.tokens_used or None, finish_reason="error")
        if await self._store(session, request, attempt, text, metadata, error.code) is not None:
            self._measures.answered("failed", request.timestamp)
            said = ChunkError(code=error.code, message="this question could not be answered")
            await speech.say("", chunk_type="error", metadata=metadata, error=said, is_final=True)

    async def resend(self, wanted: ResendRequest) -> None:
        speech = self._speeches.get(wanted.message_id)
        if speech is None or not speech.chunks or speech.chunks[0].session_id != wanted.session_id:
            return
        speech.joined(wanted.pod_id)
        chunks = [chunk for chunk in speech.chunks if chunk.chunk_id >= wanted.from_chunk]
        size = self._settings.batch_chunks
        for start in range(0, len(chunks), size):
            batch = _batch(chunks[start : start + size])
            self._measures.message_bytes.observe(memoryview(batch).nbytes)
            await tell(self._bus, f"chat.pod.{wanted.pod_id}.response", batch)
