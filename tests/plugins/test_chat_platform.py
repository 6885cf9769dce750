"""What a plugin brings is there as if it were the application's: streams, tables, documents, permissions, settings."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from litestar.routes import HTTPRoute
from msgspec import structs

from nebengjek import schema
from nebengjek.app import App
from nebengjek.asyncapi import document
from nebengjek.bus.specs import Retention
from nebengjek.database import Database
from nebengjek.errors import Misconfigured
from nebengjek.permissions import users
from nebengjek.plugins import inspect_plugin
from nebengjek.settings import Settings
from nebengjek_plugins.chat.contracts import (
    ChunkBatch,
    HeartbeatMessage,
    ResponseChunk,
    WorkflowContext,
    WorkflowRequest,
)
from nebengjek_plugins.chat.settings import ChatSettings
from tests.flows.conftest import Backend
from tests.flows.world import settings_for
from tests.servers import PostgresServer

PATH = "nebengjek_plugins.chat:chat"


def app(**table: Any) -> App:
    return App(Settings(profile="test", plugins=(PATH,), plugin={"chat": table}))


APP = app()


# -- tables


@pytest.mark.real
async def test_production_says_whose_schema_is_old(postgres: PostgresServer) -> None:
    database_url = await asyncio.to_thread(postgres.new_database)
    database = Database(database_url)
    await schema.upgrade(database)
    await database.close()
    given = structs.replace(settings_for(database_url, plugins=[PATH]), profile="production")
    with pytest.raises(Misconfigured, match="the schema of chat is empty, expected 0001"):
        await App(given, sweeping=False).start()


# -- the bus


def test_its_streams_and_its_durable_are_those_of_the_contract() -> None:
    streams = {spec.name: spec for spec in APP.streams}
    requests = streams["WORKFLOW_REQUESTS"]
    assert (requests.subjects, requests.retention) == (("chat.workflow.execute.*",), Retention.WORKQUEUE)
    assert (requests.max_age, requests.duplicate_window) == (24 * 3600.0, 300.0)
    ((stream, spec),) = APP.bus.consumers_of("chat.worker")
    assert (stream, spec.name, spec.filters) == (
        "WORKFLOW_REQUESTS",
        "workflow-processor",
        ("chat.workflow.execute.*",),
    )


async def test_the_room_that_its_streams_take_counts(tmp_path: Path) -> None:
    base = {"url": "nats://127.0.0.1:4222", "max_storage": 600 * 1024 * 1024}
    given = settings_for(f"sqlite:///{tmp_path / 'room.sqlite3'}", plugins=[PATH], nats=base)
    with pytest.raises(Misconfigured, match=r"nats\.max_storage"):
        App(given)


async def test_a_module_that_there_is_not_is_refused(backend: Backend) -> None:
    given = await backend.fresh()
    with pytest.raises(Misconfigured, match=r"chat.wroker: expected some of users, .*chat\.worker"):
        App(settings_for(given["database_url"], plugins=[PATH]), running=["chat.wroker"])


# -- documents


def test_the_schemas_have_the_fields_of_their_document_and_no_others() -> None:
    made = document(APP.modules)["components"]["schemas"]
    assert set(made["WorkflowRequest"]["properties"]) == {
        "message_id",
        "session_id",
        "user_id",
        "message",
        "context",
        "timestamp",
        "correlation_id",
    }
    assert set(made["WorkflowContext"]["properties"]) == {
        "ai_provider",
        "model",
        "temperature",
        "max_tokens",
        "system_prompt",
        "conversation_history",
    }
    assert set(made["ResponseChunk"]["properties"]) == {
        "session_id",
        "message_id",
        "chunk_id",
        "chunk",
        "chunk_type",
        "is_final",
        "metadata",
        "error",
        "timestamp",
        "correlation_id",
    }
    assert set(made["ResponseChunk"]["properties"]["chunk_type"]["enum"]) == {"content", "metadata", "error", "system"}
    assert set(made["ChunkMetadata"]["properties"]) == {"model", "tokens_used", "finish_reason"}
    assert set(made["ChunkError"]["properties"]) == {"code", "message"}
    assert set(made["HeartbeatMessage"]["properties"]) == {
        "pod_id",
        "timestamp",
        "active_connections",
        "memory_usage_mb",
        "cpu_usage_percent",
    }
    assert set(made["HealthResponse"]["properties"]) == {"pod_id", "status", "active_connections", "timestamp"}
    assert set(made["ChunkBatch"]["properties"]) == {"session_id", "chunks"}
    for kind in (WorkflowRequest, WorkflowContext, ResponseChunk, HeartbeatMessage, ChunkBatch):
        assert kind.__struct_config__.tag is None, "a tag would be one field more on the wire"


def test_its_subjects_are_in_the_asyncapi_document() -> None:
    made = document(APP.modules)
    addresses = {channel["address"] for channel in made["channels"].values()}
    assert {
        "chat.workflow.execute.{session_id}",
        "chat.pod.{pod_id}.response",
        "chat.session.{session_id}.broadcast",
        "chat.session.{session_id}.resend",
        "chat.pod.{pod_id}.health",
        "chat.pod.{pod_id}.heartbeat",
    } <= addresses
    assert not {address for address in addresses if address and "any_" in address}
    operations = made["operations"]
    assert operations["chat.worker.hears.chat.workflow.execute"]["x-durable"] == "workflow-processor"
    messages = made["components"]["messages"]
    assert {"hear.chat.chunk", "hear.chat.message", "hear.chat.marks", "say.chat.send", "say.chat.read"} <= set(
        messages
    )
    assert "seq" in messages["hear.chat.message"]["payload"]["required"]
    assert "seq" not in messages["hear.chat.chunk"]["payload"]["properties"]


def test_its_users_of_a_nats_server_may_say_and_hear_its_subjects_only() -> None:
    found = {user.name: user for user in users(APP.modules)}
    pod, worker = found["chat"], found["chat_worker"]
    assert worker.password_variable == "NATS_CHAT_WORKER_PASSWORD"
    assert "chat.workflow.execute.*" in pod.publish
    assert "chat.workflow.execute.*" not in worker.publish
    assert {"chat.pod.*.response", "chat.session.*.broadcast", "chat.answered.*"} <= set(worker.publish)
    assert {"chat.pod.*.response", "chat.session.*.broadcast"} <= set(pod.subscribe)
    assert "$JS.API.CONSUMER.MSG.NEXT.WORKFLOW_REQUESTS.workflow-processor" in worker.publish
    assert "$JS.API.CONSUMER.MSG.NEXT.WORKFLOW_REQUESTS.workflow-processor" not in pod.publish
    assert "chat.pod.*.response" not in found["rides"].publish + found["rides"].subscribe


# -- settings


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"temprature": 1}, "plugin.chat.temprature: there is no such argument; did you mean plugin.chat.temperature?"),
        ({"temperature": 3}, "plugin.chat.temperature: Expected `float` <= 2"),
        ({"ai_provider": "oracle"}, "plugin.chat.ai_provider: 'oracle', expected one of"),
    ],
)
def test_a_mistake_in_its_table_is_named(table: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        app(**table)
    assert said in str(caught.value)


def test_what_it_takes_is_listed() -> None:
    info = inspect_plugin(PATH)
    assert info.name == "chat"
    assert info.arguments["missing_wait"] == "30"
    assert info.arguments["openai_api_key"] == "None"
    assert "bus" not in info.arguments


def test_the_page_of_the_chat_names_its_settings_and_its_requests() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "chat.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z_]+)`", page.partition("## Settings")[2]))
    assert set(ChatSettings.__struct_fields__) <= listed
    served = {
        f"{method} {route.path_format}"
        for route in APP.litestar.routes
        if isinstance(route, HTTPRoute) and "/chat/" in route.path_format
        for method in route.methods - {"OPTIONS", "HEAD"}
    }
    assert served == set(re.findall(r"`((?:GET|POST) /(?:admin/)?chat/[^`]*)`", page))
