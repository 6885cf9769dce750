"""The AsyncAPI document: complete, sound, true to the code, and the same as the one in docs/."""

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from litestar import Litestar
from polyfactory.factories.msgspec_factory import MsgspecFactory

from nebengjek import contracts
from nebengjek.app import App
from nebengjek.asyncapi import ACKS, TOLD, asyncapi_route, document, document_text
from nebengjek.bus import last_tries
from nebengjek.contracts.message import Event, Query, type_of
from nebengjek.module import Module, on
from nebengjek.settings import load
from nebengjek.streams import STREAMS
from nebengjek.users.frames import SAYS

ROOT = Path(__file__).parent.parent
MODULES = App(load()).modules
DOCUMENT = document(MODULES)


def kinds(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield from kinds(kind)
        if isinstance(kind.__struct_config__.tag, str) and kind.__module__.startswith("nebengjek.contracts."):
            yield kind


for found in pkgutil.iter_modules(contracts.__path__):
    importlib.import_module(f"{contracts.__name__}.{found.name}")
EVENTS = sorted(kinds(Event), key=type_of)
QUERIES = sorted(kinds(Query), key=type_of)


def resolve(ref: str) -> Any:
    place: Any = DOCUMENT
    assert ref.startswith("#/"), ref
    for part in ref[2:].split("/"):
        place = place[part.replace("~1", "/").replace("~0", "~")]
    return place


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from refs(item)


def schema(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "components": DOCUMENT["components"]}


def test_the_document_in_docs_is_what_the_code_says() -> None:
    kept = (ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8")
    assert kept == document_text(DOCUMENT), "run: nebengjek asyncapi --write docs/asyncapi.json"


def test_every_reference_leads_somewhere() -> None:
    found = list(refs(DOCUMENT))
    assert len(found) > 100
    for ref in found:
        resolve(ref)


def test_every_event_and_query_of_the_contracts_is_in_it() -> None:
    assert len(EVENTS) >= 20
    for event in EVENTS:
        channel = DOCUMENT["channels"][type_of(event)]
        assert channel["address"] == f"{type_of(event)}.{{{event.key}}}"
        assert list(channel["messages"]) == [event.__name__]
        assert list(channel["parameters"]) == [event.key]
        assert channel["x-stream"] in {spec.name for spec in STREAMS}
    for query in QUERIES:
        assert DOCUMENT["channels"][f"rpc.{type_of(query)}"]["messages"].keys() == {query.__name__}


def test_parameters_are_those_of_the_address() -> None:
    for channel in DOCUMENT["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"] or "")) == set(channel.get("parameters", {}))


def test_operations_speak_only_messages_of_their_channel() -> None:
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert operation["messages"]
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")


def test_the_modules_tables_are_in_it() -> None:
    operations = DOCUMENT["operations"]
    assert operations["match.hears.ride.pickup"]["x-durable"] == "ride_pickup_match"
    assert operations["rides.hears.match.accepted"]["x-durable"] == "match_accepted_rides"
    heard = {
        f"{module.name}.hears.{type_of(hearing.event)}": durable(hearing.event, module)
        for module in MODULES
        for hearing in module.hears
    }
    assert {name: item["x-durable"] for name, item in operations.items() if "x-durable" in item} == heard
    for module in MODULES:
        for answering in module.answers:
            operation = operations[f"{module.name}.answers.{type_of(answering.query)}"]
            assert operation["bindings"]["nats"]["queue"] == module.name


def durable(event: type[Event], module: Module) -> str:
    return f"{type_of(event).replace('.', '_')}_{module.name}"


def test_durables_are_called_as_the_bus_calls_them() -> None:
    app = App(load())
    named = {item["x-durable"] for item in DOCUMENT["operations"].values() if "x-durable" in item}
    # Those of the stream of advisories are the bus's own.
    assert named == {name for stream, name in app.bus._wanted if stream != last_tries.STREAM}


def test_who_says_an_event_is_who_makes_it() -> None:
    by_name = {event.__name__: type_of(event) for event in EVENTS}
    made: dict[str, set[str]] = {}
    modules = App(load()).modules
    said = {type_of(event): module.name for module in modules for event in module.says}
    for module in said.values():
        for path in (ROOT / "nebengjek" / module).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in by_name:
                    made.setdefault(by_name[node.func.id], set()).add(module)
    assert {event: {module} for event, module in said.items()} == made


def test_who_asks_a_query_is_who_makes_it_and_does_not_answer_it_himself() -> None:
    by_name = {query.__name__: query for query in QUERIES}
    for module in App(load()).modules:
        own = {answering.query for answering in module.answers}
        made = {
            by_name[node.func.id]
            for path in (ROOT / "nebengjek" / module.name).glob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in by_name
        }
        assert set(module.asks) == made - own, module.name


@pytest.mark.parametrize("event", EVENTS, ids=type_of)
def test_an_event_as_it_is_encoded_satisfies_its_schema(event: type[Event]) -> None:
    payload = DOCUMENT["components"]["messages"][event.__name__]["payload"]
    validator = jsonschema_rs.Draft202012Validator(schema(payload))
    sample = MsgspecFactory.create_factory(event).build()
    encoded = json.loads(msgspec.json.encode(sample))
    validator.validate(encoded)
    del encoded[event.key]
    assert not validator.is_valid(encoded)


def test_every_payload_is_a_json_schema() -> None:
    for message in DOCUMENT["components"]["messages"].values():
        jsonschema_rs.Draft202012Validator(schema(message["payload"]))


# -- phones


def frame(name: str) -> dict[str, Any]:
    payload: dict[str, Any] = DOCUMENT["components"]["messages"][name]["payload"]
    return payload


def test_phones_say_what_the_server_takes() -> None:
    said = {name.removeprefix("say.") for name in DOCUMENT["channels"]["phone"]["messages"] if name.startswith("say.")}
    assert said == set(SAYS) == set(ACKS)
    validator = jsonschema_rs.Draft202012Validator(schema(frame("say.ride.pay")))
    validator.validate({"event": "ride.pay", "data": {"ride_id": "r", "amount": 3000}, "id": "1"})
    assert not validator.is_valid({"event": "ride.pay", "data": {"ride_id": "r", "amount": -1}})
    assert not validator.is_valid({"event": "ride.start", "data": {"ride_id": "r", "amount": 1}})


def test_phones_are_told_what_is_in_the_document() -> None:
    told = set(TOLD) | {"ack"}
    frames = {name.removeprefix("hear.") for name in DOCUMENT["channels"]["phone"]["messages"] if "hear." in name}
    assert frames == told
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nebengjek" / "users").glob("*.py"))
    literal = set(re.findall(r"(?:encode_frame|deliver|show)\((?:[\w.]+, )?\"([\w.]+)\"", source))
    assert {"session.ready", "ack", "error", "location.stored"} <= literal <= told
    (users,) = (module for module in MODULES if module.name == "users")
    assert {type_of(hearing.event) for hearing in users.hears} - told == {"location.refused", "user.avatar.uploaded"}


def test_what_a_phone_is_told_is_counted_unless_it_may_be_missed() -> None:
    pickup = frame("hear.ride.pickup")
    assert "seq" in pickup["required"]
    data = resolve(pickup["properties"]["data"]["$ref"])
    assert "ride_id" in data["properties"]
    assert not {"type", "version"} & set(data["properties"])
    for name in ("ride.tracking", "location.stored", "session.ready", "error", "ack"):
        assert "seq" not in frame(f"hear.{name}")["properties"]


# -- plugins, serving


def test_a_plugins_event_is_in_the_document_of_its_application() -> None:
    class Tipped(Event, frozen=True, kw_only=True, tag="ride.tipped"):
        """A passenger gave a tip."""

        ride_id: str
        key = "ride_id"

    async def thank(event: Tipped) -> None: ...

    made = document([*MODULES, Module(name="tips", hears=[on(Tipped, thank)])])
    assert made["operations"]["tips.hears.ride.tipped"]["x-durable"] == "ride_tipped_tips"
    assert made["components"]["messages"]["Tipped"]["summary"] == "A passenger gave a tip."


async def test_it_is_served() -> None:
    app: Any = Litestar([asyncapi_route(lambda: DOCUMENT)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod") as http:
        answer = await http.get("/asyncapi")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == DOCUMENT
