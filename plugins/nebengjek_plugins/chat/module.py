"""The table of contents of chat: ``chat`` serves readers and writers, ``chat.worker`` answers."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from nebengjek.bus.handling import Listening, Telling
from nebengjek.bus.messaging import MessageBus
from nebengjek.bus.specs import Retention, StreamSpec
from nebengjek.clock import Clock
from nebengjek.contracts.location import LatestLocations
from nebengjek.contracts.match import MatchAccepted, MatchesOf, MatchRejected
from nebengjek.contracts.rides import (
    RecentRides,
    RideCancelled,
    RideCompleted,
    RideDetailsOf,
    RideOfUser,
    RidePickup,
)
from nebengjek.contracts.users import UserSessionEnded, UserUpdated
from nebengjek.database import Database
from nebengjek.faststate import FastState
from nebengjek.module import Module, every, on, watch
from nebengjek.realtime.delivery import Delivery
from nebengjek.realtime.presence import Presence
from nebengjek_plugins.chat.assistants.choice import assistants
from nebengjek_plugins.chat.contracts import (
    ChatAnswered,
    ChatMarked,
    ChatMessage,
    ChunkBatch,
    HealthRequest,
    HealthResponse,
    HeartbeatMessage,
    Message,
    ResendRequest,
    ResponseChunk,
    SessionMarks,
    WorkflowRequest,
    read_chunks,
)
from nebengjek_plugins.chat.health import Health
from nebengjek_plugins.chat.hub import Hub
from nebengjek_plugins.chat.measures import Measures
from nebengjek_plugins.chat.migrations import HISTORY
from nebengjek_plugins.chat.operators import Desk
from nebengjek_plugins.chat.phones import Phones, RideSessions
from nebengjek_plugins.chat.routes import ChatController, Guard, OperatorsController, commands
from nebengjek_plugins.chat.service import ChatService
from nebengjek_plugins.chat.settings import ChatSettings
from nebengjek_plugins.chat.worker import Pods, Worker

MIB = 1024 * 1024
STREAMS = (
    StreamSpec(
        name="WORKFLOW_REQUESTS",
        subjects=("chat.workflow.execute.*",),
        retention=Retention.WORKQUEUE,
        max_age=24 * 3600.0,
        max_bytes=100 * MIB,
        max_msgs=1_000_000,
        duplicate_window=300.0,
        description="questions for the chat's workers, each for one of them",
    ),
    StreamSpec(
        name="CHAT_STREAM",
        subjects=("chat.message.*", "chat.answered.*", "chat.marked.*"),
        retention=Retention.INTEREST,
        max_age=24 * 3600.0,
        max_bytes=100 * MIB,
        max_msgs=1_000_000,
        duplicate_window=300.0,
        description="what was written and read in chat",
    ),
)
DURABLE = "workflow-processor"
"""Of all workers: each question goes to one of them."""
CHUNKS = (ResponseChunk, ChunkBatch)


def chat(
    bus: MessageBus,
    database: Database,
    clock: Clock,
    delivery: Delivery,
    state: FastState,
    presence: Callable[[str], Presence],
    admin_guard: Guard,
    pod_id: str,
    registry: CollectorRegistry,
    settings: ChatSettings,
) -> Sequence[Module]:
    """Questions answered in a stream, and the two of a ride writing to each other."""
    readers = presence("chat-readers")
    measures = Measures(registry, clock)
    service = ChatService(bus, database, state, clock, settings)
    hub = Hub(bus, database, delivery, readers, clock, settings, service.finish, measures, pod_id=pod_id)
    health = Health(bus, hub, clock, timeout=settings.health_timeout)
    phones = Phones(delivery)
    rides = RideSessions(database, clock, closes_after=settings.ride_closes_after)

    routes: dict[str, Any] = {
        "service": service,
        "hub": hub,
        "measures": measures,
        "database": database,
        "clock": clock,
        "settings": settings,
    }
    operators: dict[str, Any] = {
        "desk": Desk(bus, database, clock),
        "health": health,
        "guards": [admin_guard],
    }
    served = Module(
        name="chat",
        routes=[
            type("Chat", (ChatController,), routes),
            type("ChatOperators", (OperatorsController,), operators),
        ],
        streams=STREAMS,
        history=HISTORY,
        says=[WorkflowRequest, ChatMessage, ChatMarked],
        hears=[
            on(ChatMessage, phones.message),
            on(ChatAnswered, phones.message),
            on(ChatMarked, phones.marked),
            on(MatchAccepted, rides.accepted),
            on(MatchRejected, rides.rejected),
            on(RidePickup, rides.pickup),
            on(RideCompleted, rides.ended),
            on(RideCancelled, rides.ended),
            on(UserUpdated, service.user_changed),
        ],
        watches=[
            watch(ChatMessage, hub.stored),
            watch(ChatAnswered, hub.stored),
            watch(ChatMarked, hub.marked),
            watch(UserSessionEnded, hub.login_ended),
        ],
        listens=[
            _listen("chat.pod.{pod_id}.response", CHUNKS, hub.heard, read_chunks),
            _listen("chat.session.{session_id}.broadcast", CHUNKS, hub.heard, read_chunks),
            _listen("chat.pod.{any_pod_id}.heartbeat", [HeartbeatMessage], health.heard),
            _listen("chat.pod.{pod_id}.health", [HealthRequest], health.answer, _read_request, HealthResponse),
        ],
        tells=[
            Telling(subject="chat.session.{session_id}.resend", carries=[ResendRequest]),
            Telling(subject="chat.pod.{pod_id}.heartbeat", carries=[HeartbeatMessage]),
            Telling(subject="chat.pod.{pod_id}.health", carries=[HealthRequest]),
        ],
        frames={"chat.chunk": ResponseChunk, "chat.message": Message, "chat.marks": SessionMarks},
        passing=["chat.chunk", "chat.marks"],
        commands=commands(service, hub, measures),
        sweeps=[
            every(1.0, hub.sweep),
            every(2.0, hub.beat),
            every(5.0, hub.look),
            every(5.0, health.beat),
            every(60.0, service.give_up_old),
            every(3600.0, service.forget_old),
        ],
        # Whoever holds readers is known before the first of them comes.
        start=hub.beat,
        closing=hub.close,
    )
    worker = Worker(
        bus,
        database,
        clock,
        service,
        Pods(readers, delivery, hub.holds, pod_id=pod_id),
        assistants(settings),
        settings,
        measures,
    )
    return [served, _worker(worker, settings)]


def _worker(worker: Worker, settings: ChatSettings) -> Module:
    return Module(
        name="chat.worker",
        says=[ChatAnswered],
        asks=[RideOfUser, RecentRides, RideDetailsOf, MatchesOf, LatestLocations],
        hears=[
            on(
                WorkflowRequest,
                worker.answer,
                durable=DURABLE,
                concurrency=settings.concurrency,
                max_ack_pending=max(256, 2 * settings.concurrency),
                ack_wait=settings.redeliver_after,
                max_deliver=settings.tries,
                timeout=settings.answer_timeout,
            )
        ],
        listens=[_listen("chat.session.{session_id}.resend", [ResendRequest], worker.resend)],
        tells=[
            Telling(subject="chat.pod.{pod_id}.response", carries=CHUNKS),
            Telling(subject="chat.session.{session_id}.broadcast", carries=CHUNKS),
        ],
    )


def _listen(
    subject: str,
    carries: Sequence[type[Any]],
    handler: Callable[[Any], Any],
    read: Callable[[bytes], Any] | None = None,
    answers: type[Any] | None = None,
) -> Listening:
    read = read or msgspec.json.Decoder(carries[0]).decode
    return Listening(subject=subject, carries=carries, handler=handler, read=read, answers=answers)


def _read_request(_: bytes) -> HealthRequest:
    """Whatever is asked with: the subject is the question."""
    return HealthRequest()
