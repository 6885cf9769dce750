"""The conversation of the system as an AsyncAPI 3.0 document: made from the contracts, the modules' tables, the frames.

https://www.asyncapi.com/docs/reference/specification/v3.0.0. ``x-`` fields say what the standard has no word for:
stream, durable consumer, whether it is watched. docs/asyncapi.json is this document; a test compares.
Over 300 lines: one document, its parts one after the other.
"""

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from nebengjek import contracts
from nebengjek.bus.specs import StreamSpec
from nebengjek.contracts.match import Match, MatchStatus
from nebengjek.contracts.message import Event, Query, answer_type, rpc_subject, type_of
from nebengjek.contracts.pods import HEARTBEAT, PodHeartbeat, PodPosts
from nebengjek.contracts.rides import (
    Bill,
    PaymentStatus,
    Ride,
    RideArrived,
    RideCancelled,
    RidePayment,
    RidePickup,
    RideProgress,
    RideStarted,
    RideStatus,
)
from nebengjek.module import Module
from nebengjek.streams import STREAMS, stream_of
from nebengjek.users.frames import SAYS, Active, ErrorData, SessionReady, Stored, Tracking, Unavailable

T = TypeVar("T")
Document = dict[str, Any]

ACKS: dict[str, type[Any] | None] = {
    "user.beacon": Active,
    "user.finder": Active,
    "location.update": None,
    "match.accept": MatchStatus,
    "match.reject": MatchStatus,
    "ride.start": RideStatus,
    "ride.arrive": Bill,
    "ride.pay": PaymentStatus,
    "ride.cancel": RideStatus,
    "session.ack": None,
}
"""What the ack of a frame carries besides the frame's id."""

TOLD: dict[str, type[Any]] = {
    "session.ready": SessionReady,
    "error": ErrorData,
    "user.beacon": Active,
    "user.finder": Active,
    "location.stored": Stored,
    "ride.tracking": Tracking,
    "match.found": Match,
    "match.accepted": Match,
    "match.rejected": Match,
    "match.unavailable": Unavailable,
    "ride.pickup": RidePickup,
    "ride.started": RideStarted,
    "ride.progress": RideProgress,
    "ride.arrived": RideArrived,
    "ride.payment": RidePayment,
    "ride.completed": Ride,
    "ride.cancelled": RideCancelled,
}
"""What a phone is told; of an event it gets the fields without ``type`` and ``version``."""
NOT_COUNTED = frozenset({"session.ready", "ack", "error", "location.stored", "ride.tracking"})
"""Frames without a ``seq``: answers, and what may be missed."""

_HEADERS = {
    "Nats-Msg-Id": "what de-duplicates: type, entity, number",
    "Event-Type": "the event's type",
    "Event-Version": "version of its schema; fields are only ever added inside one",
    "Correlation-Id": "the same for everything that one frame or request of a phone caused",
    "Causation-Id": "the message whose handler said this one",
    "Occurred-At": "UTC, ISO 8601",
    "Producer": "the pod that said it",
    "traceparent": "W3C trace context",
    "tracestate": "W3C trace context",
}


def document(modules: Sequence[Module], streams: Sequence[StreamSpec] = STREAMS, *, ack_wait: float = 30.0) -> Document:
    """The document of these modules; the contracts' events and queries are in it whether somebody hears them or not."""
    streams = [*streams, *(spec for module in modules for spec in module.streams)]
    heard = {hearing.event for module in modules for hearing in module.hears}
    heard |= {event for module in modules for event in module.says}
    heard |= {watching.event for module in modules for watching in module.watches}
    answered = {answering.query for module in modules for answering in module.answers}
    events = sorted({*_contracts(Event), *heard}, key=type_of)
    queries = sorted({*_contracts(Query), *answered}, key=type_of)
    told = TOLD | {event: kind for module in modules for event, kind in module.frames.items()}
    core = _core(modules)
    between_pods: set[type[Any]] = {PodHeartbeat, PodPosts, *(kind for _, _, kinds, _ in core for kind in kinds)}
    beside = sorted(between_pods, key=lambda kind: kind.__name__)
    answers = (answer_type(query) for query in queries)
    schemas = _Schemas([*events, *queries, *answers, *_frame_types(), *module_frames(modules), *beside])
    channels: Document = {}
    messages: Document = {}
    operations: Document = {}
    for event in events:
        _add_event(event, streams, schemas, channels, messages)
    for query in queries:
        _add_query(query, schemas, channels, messages)
    _add_phone(schemas, channels, messages, operations, told, modules)
    _add_modules(modules, operations, ack_wait)
    _add_pods(schemas, channels, messages, operations)
    _add_core(core, schemas, channels, messages, operations)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "NebengJek",
            "version": version("nebengjek"),
            "description": "Ride-hailing: the events and queries between its modules, and the frames of its phones.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "bus": {
                "host": "localhost:4222",
                "protocol": "nats",
                "description": "JetStream, or its equal inside the process",
            },
            "phones": {
                "host": "localhost:8000",
                "protocol": "ws",
                "description": "one socket a phone",
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            },
        },
        "channels": channels,
        "operations": dict(sorted(operations.items())),
        "components": {
            "messages": dict(sorted(messages.items())),
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "messageTraits": {
                "envelope": {
                    "headers": {
                        "type": "object",
                        "properties": {
                            name: {"type": "string", "description": text} for name, text in _HEADERS.items()
                        },
                    },
                    "correlationId": {"location": "$message.header#/Correlation-Id"},
                }
            },
        },
    }


def document_text(made: Document) -> str:
    """As it is kept in docs/asyncapi.json."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def asyncapi_route(make: Callable[[], Document]) -> HTTPRouteHandler:
    """GET /asyncapi. The document is made when somebody asks for it first."""

    @cache
    def body() -> bytes:
        return json.dumps(make(), ensure_ascii=False).encode()

    @get("/asyncapi", include_in_schema=False, opt={"public": True})
    async def asyncapi() -> Response[bytes]:
        return Response(body(), headers={"content-type": "application/json"})

    return asyncapi


# -- the parts


def _contracts(base: type[T]) -> Iterator[type[T]]:
    """Every tagged event or query of nebengjek.contracts."""
    for found in pkgutil.iter_modules(contracts.__path__):
        module = importlib.import_module(f"{contracts.__name__}.{found.name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module.__name__:
                config = getattr(kind, "__struct_config__", None)
                if config is not None and isinstance(config.tag, str):
                    yield kind


def _frame_types() -> Iterator[type[Any]]:
    yield from SAYS.values()
    yield from TOLD.values()
    yield from (kind for kind in ACKS.values() if kind is not None)


class _Schemas:
    """JSON schemas of our types, each once, by reference."""

    def __init__(self, types: Iterable[type[Any]]) -> None:
        unique = list(dict.fromkeys(types))
        refs, made = msgspec.json.schema_components(unique, ref_template="#/components/schemas/{name}")
        # As whoever reads the document has it: a default that is a tuple is a list there.
        self.components: Document = msgspec.json.decode(msgspec.json.encode(made))
        self._refs = dict(zip(unique, refs, strict=True))

    def of(self, kind: type[Any]) -> Document:
        return dict(self._refs[kind])

    def without(self, kind: type[Struct], *fields: str) -> Document:
        """The same object without these fields."""
        name = self._refs[kind]["$ref"].rpartition("/")[2]
        whole = self.components[name]
        made = {
            **whole,
            "title": f"{whole['title']}Frame",
            "properties": {key: value for key, value in whole["properties"].items() if key not in fields},
            "required": [key for key in whole["required"] if key not in fields],
        }
        self.components[f"{name}Frame"] = made
        return {"$ref": f"#/components/schemas/{name}Frame"}


def _summary(kind: type[Any]) -> str:
    # A struct without words of its own would lend those of its base.
    return (vars(kind).get("__doc__") or "").strip().partition("\n")[0]


def _add_event(
    event: type[Event], streams: Sequence[StreamSpec], schemas: _Schemas, channels: Document, messages: Document
) -> None:
    name = type_of(event)
    messages[event.__name__] = {
        "name": name,
        "summary": _summary(event),
        "contentType": "application/json",
        "traits": [{"$ref": "#/components/messageTraits/envelope"}],
        "payload": schemas.of(event),
        "x-message-id": f"{name}-{{{event.key}}}-{{{event.number or 'uuid7'}}}",
    }
    channels[name] = {
        "address": f"{name}.{{{event.key}}}",
        "servers": [{"$ref": "#/servers/bus"}],
        "parameters": {event.key: {"description": f"the event's {event.key}: one token of the subject"}},
        "messages": {event.__name__: {"$ref": f"#/components/messages/{event.__name__}"}},
        "x-stream": stream_of(name, streams).name,
    }


def _add_query(query: type[Query[Any]], schemas: _Schemas, channels: Document, messages: Document) -> None:
    subject, question, answer = rpc_subject(query), query.__name__, f"{query.__name__}Answer"
    messages[question] = {
        "name": type_of(query),
        "summary": _summary(query),
        "contentType": "application/json",
        "payload": schemas.of(query),
    }
    messages[answer] = {
        "name": f"{type_of(query)} answer",
        "summary": "The answer, or an error: Error-Kind, Error-Code and Error-Text in the headers, no body.",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("Error-Kind", "Error-Code", "Error-Text")},
        },
        "payload": schemas.of(answer_type(query)),
    }
    channels[subject] = {
        "address": subject,
        "servers": [{"$ref": "#/servers/bus"}],
        "messages": {question: {"$ref": f"#/components/messages/{question}"}},
    }
    channels[f"{subject}.reply"] = {
        "address": None,
        "description": "the inbox that the question names",
        "messages": {answer: {"$ref": f"#/components/messages/{answer}"}},
    }


def _add_modules(modules: Sequence[Module], operations: Document, ack_wait: float) -> None:
    for module in modules:
        for hearing in module.hears:
            name = type_of(hearing.event)
            operations[f"{module.name}.hears.{name}"] = {
                **_operation("receive", name, hearing.event.__name__),
                "tags": [{"name": module.name}],
                "x-durable": hearing.consumer(module.name),
                "x-max-deliver": hearing.max_deliver,
                "x-ack-wait": ack_wait if hearing.ack_wait is None else hearing.ack_wait,
            }
        for watching in module.watches:
            name = type_of(watching.event)
            operations[f"{module.name}.watches.{name}"] = {
                **_operation("receive", name, watching.event.__name__),
                "summary": "every pod, at most once",
                "tags": [{"name": module.name}],
            }
        for answering in module.answers:
            subject, query = rpc_subject(answering.query), answering.query.__name__
            operations[f"{module.name}.answers.{type_of(answering.query)}"] = {
                **_operation("receive", subject, query),
                "tags": [{"name": module.name}],
                "bindings": {"nats": {"queue": module.name, "bindingVersion": "0.1.0"}},
                "reply": {
                    "address": {"location": "$message.header#/reply", "description": "NATS carries it, not a header"},
                    "channel": {"$ref": f"#/channels/{subject}.reply"},
                    "messages": [{"$ref": f"#/channels/{subject}.reply/messages/{query}Answer"}],
                },
            }
        for event in module.says:
            name = type_of(event)
            operations[f"{module.name}.says.{name}"] = {
                **_operation("send", name, event.__name__),
                "tags": [{"name": module.name}],
            }


def _add_phone(
    schemas: _Schemas,
    channels: Document,
    messages: Document,
    operations: Document,
    frames: Mapping[str, type[Any]],
    modules: Sequence[Module],
) -> None:
    commands = [command for module in modules for command in module.commands]
    says = SAYS | {command.event: command.data for command in commands}
    passing = NOT_COUNTED.union(*(module.passing for module in modules))
    said = {f"say.{event}": _frame(event, schemas.of(kind), said=True) for event, kind in says.items()}
    told = {
        f"hear.{event}": _frame(event, _told(kind, schemas), said=False, counted=event not in passing)
        for event, kind in frames.items()
    }
    acks = [*ACKS.values(), *(command.answer for command in commands)]
    told["hear.ack"] = _frame("ack", _ack(schemas, acks), said=False, counted=False)
    messages |= said | told
    channels["phone"] = {
        "address": "/ws",
        "servers": [{"$ref": "#/servers/phones"}],
        "description": "The token as Authorization: Bearer, or as subprotocol: nebengjek.v1, bearer.<token>.",
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "properties": {"epoch": {"type": "string"}, "last_seq": {"type": "integer", "minimum": 0}},
                },
                "bindingVersion": "0.1.0",
            }
        },
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in (*said, *told)},
    }
    operations["phone.says"] = {
        **_operation("receive", "phone", *said),
        "summary": "What a phone may say; a frame with an id is answered by ack or error with that id.",
        "reply": {
            "channel": {"$ref": "#/channels/phone"},
            "messages": [{"$ref": f"#/channels/phone/messages/{name}"} for name in ("hear.ack", "hear.error")],
        },
    }
    operations["phone.hears"] = {**_operation("send", "phone", *told), "summary": "What a phone is told."}


def _add_pods(schemas: _Schemas, channels: Document, messages: Document, operations: Document) -> None:
    """What pods tell each other: core messages, in no stream."""
    for kind in (PodHeartbeat, PodPosts):
        messages[kind.__name__] = {
            "name": kind.__name__,
            "summary": _summary(kind),
            "contentType": "application/json",
            "payload": schemas.of(kind),
        }
    said = (
        (HEARTBEAT, PodHeartbeat, "each five seconds, to every pod"),
        ("pod.{pod_id}.health", PodHeartbeat, "the answer to an empty request"),
        ("pod.{pod_id}.deliver", PodPosts, "for phones that this pod holds"),
        ("session.{user_id}.broadcast", PodPosts, "for a user's phones, when it is not known which pod holds them"),
    )
    for address, kind, text in said:
        name = address.replace("{", "").replace("}", "")
        parameter = re.findall(r"\{(\w+)\}", address)
        channels[name] = {
            "address": address,
            "description": text,
            "servers": [{"$ref": "#/servers/bus"}],
            "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"}},
            **({"parameters": {one: {"description": "one token"} for one in parameter}} if parameter else {}),
        }
        operations[f"pods.say.{name}"] = {**_operation("send", name, kind.__name__), "summary": "at most once"}


def module_frames(modules: Sequence[Module]) -> list[type[Any]]:
    """The shapes of what modules tell phones and are told by them, besides ``TOLD`` and ``SAYS``."""
    commands = [command for module in modules for command in module.commands]
    told = [kind for module in modules for kind in module.frames.values()]
    return [
        *told,
        *(command.data for command in commands),
        *(command.answer for command in commands if command.answer is not None),
    ]


def _core(modules: Sequence[Module]) -> list[tuple[str, str, list[type[Any]], bool]]:
    """(module, subject, types, is it heard) of what modules say and hear outside every stream."""
    said = [(module.name, one.subject, list(one.carries), False) for module in modules for one in module.tells]
    heard = [
        (module.name, one.subject.replace("{any_", "{"), [*one.carries, *([one.answers] if one.answers else [])], True)
        for module in modules
        for one in module.listens
    ]
    return said + heard


def _add_core(
    core: Sequence[tuple[str, str, list[type[Any]], bool]],
    schemas: _Schemas,
    channels: Document,
    messages: Document,
    operations: Document,
) -> None:
    for module, address, kinds, heard in core:
        name = address.replace("{", "").replace("}", "")
        channel = channels.setdefault(
            name,
            {
                "address": address,
                "description": "outside every stream: at most once",
                "servers": [{"$ref": "#/servers/bus"}],
                "messages": {},
                "parameters": {one: {"description": "one token"} for one in re.findall(r"\{(\w+)\}", address)},
            },
        )
        for kind in kinds:
            messages[kind.__name__] = {
                "name": kind.__name__,
                "summary": _summary(kind),
                "contentType": "application/json",
                "payload": schemas.of(kind),
            }
            channel["messages"][kind.__name__] = {"$ref": f"#/components/messages/{kind.__name__}"}
        operations[f"{module}.{'listens' if heard else 'tells'}.{name}"] = {
            **_operation("receive" if heard else "send", name, *(kind.__name__ for kind in kinds)),
            "tags": [{"name": module}],
        }


def _told(kind: type[Any], schemas: _Schemas) -> Document:
    return schemas.without(kind, "type", "version") if issubclass(kind, Event) else schemas.of(kind)


def _ack(schemas: _Schemas, kinds: Sequence[type[Any] | None]) -> Document:
    results = [schemas.of(kind) for kind in dict.fromkeys(kinds) if kind is not None]
    return {
        "type": "object",
        "properties": {"id": {"type": "string", "description": "the frame's"}},
        "required": ["id"],
        "anyOf": [*results, {"description": "nothing more"}],
    }


def _frame(event: str, data: Document, *, said: bool, counted: bool = True) -> Document:
    properties: Document = {"event": {"const": event}, "data": data}
    required = ["event", "data"]
    if said:
        properties["id"] = {"type": "string", "minLength": 1, "maxLength": 128}
    elif counted:
        properties["seq"] = {"type": "integer", "description": "counts up per user; give the last one on coming back"}
        required.append("seq")
    return {
        "name": event,
        "contentType": "application/json",
        "payload": {"type": "object", "properties": properties, "required": required},
    }


def _operation(action: str, channel: str, *messages: str) -> Document:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }
