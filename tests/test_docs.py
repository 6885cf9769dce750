"""The words are true of the code: what they name is there, and what is there is named.

Over 300 lines because each kind of name (settings, events, frames, routes, codes, tables, metrics, commands) has its
own place in the code, and one file shows that none was forgotten.
"""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import rich_click as click
from litestar.routes import ASGIRoute, HTTPRoute

from nebengjek import permissions, telemetry, web
from nebengjek.app import App
from nebengjek.asyncapi import TOLD
from nebengjek.bus import codec, dead_letters, queries, tracing
from nebengjek.bus.health import Health
from nebengjek.bus.interface import Connection, ConnectionStatus
from nebengjek.bus.messages import MSG_ID
from nebengjek.bus.messaging import MessageBus
from nebengjek.cli import cli
from nebengjek.contracts.match import EndReason, MatchState
from nebengjek.contracts.message import Event, rpc_subject, type_of
from nebengjek.contracts.rides import PaymentState, RideState
from nebengjek.realtime import delivery
from nebengjek.settings import KEYS, REFERENCE_NAMES, Settings
from nebengjek.sql import metadata
from nebengjek.streams import HOUR, MIB, STREAMS, durable_name
from nebengjek.users import websocket
from nebengjek.users.frames import SAYS

ROOT = Path(__file__).parent.parent
DOCS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
README, DOMAIN, PROTOCOL = DOCS["README.md"], DOCS["docs/domain.md"], DOCS["docs/protocol.md"]
BUS, OPERATIONS = DOCS["docs/bus.md"], DOCS["docs/operations.md"]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nebengjek").rglob("*.py")))
APP = App(Settings())

_SQL = re.compile(r"`(UPDATE|BEGIN|RETURNING)[^`]*`")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def fenced(text: str, kind: str) -> list[str]:
    return [body for name, body in _FENCE.findall(text) if name == kind]


def spans(text: str) -> list[str]:
    """What stands in backticks in the prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", _FENCE.sub("", text))]


def words(text: str) -> Iterator[str]:
    """The words of those spans."""
    for span in spans(text):
        yield from (word.strip(".,:;…") for word in re.split(r"[\s,]+", span))


def section(text: str, heading: str) -> str:
    """From a heading to the next one of its level or above."""
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.M)
    assert start is not None, heading
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", _blank_code(rest), re.M)
    return rest[: end.start()] if end else rest


def _blank_code(text: str) -> str:
    return _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)


def rows(text: str) -> list[list[str]]:
    """The cells of every table, without headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [index for index, row in enumerate(cells) if all(set(cell) <= {"-", ":"} and cell for cell in row)]
    return [row for index, row in enumerate(cells) if index not in rules and index + 1 not in rules]


def codes_of(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# -- what the code has

EVENTS: set[str] = set()
CONSUMERS: dict[str, set[str]] = {}


def _events(kind: type[Event]) -> None:
    for sub in kind.__subclasses__():
        if sub.__module__.startswith("nebengjek.contracts") and sub.__struct_config__.tag:
            EVENTS.add(type_of(sub))
        _events(sub)


_events(Event)
for module in APP.modules:
    for hearing in module.hears:
        CONSUMERS.setdefault(type_of(hearing.event), set()).add(durable_name(type_of(hearing.event), module.name))

QUERIES = {rpc_subject(answering.query) for module in APP.modules for answering in module.answers}
FRAMES_OUT = {*TOLD, "ack", "error"}
CODES = {
    *re.findall(r'\bcode(?:: str)?\s*=\s*"([A-Z_]+)"', SOURCE),
    *re.findall(r'RemoteError\("([A-Z_]+)"', SOURCE),
    *web._CODES.values(),
    "ERROR",
}
STATES = {*get_args(MatchState), *get_args(RideState), *get_args(PaymentState)}


def _served(app: App) -> set[str]:
    return {
        f"{method} {route.path_format}"
        for route in app.litestar.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods - {"OPTIONS", "HEAD"}
        if "{path" not in route.path_format
    } | {
        f"GET {route.path_format}"
        for route in app.litestar.routes
        if isinstance(route, ASGIRoute) and route.path == "/ws"
    }


ROUTES = _served(APP)
WITH_PLUGINS = App(
    Settings(
        plugins=(
            "nebengjek_plugins.chat:chat",
            "nebengjek_plugins.profiles:profiles",
            "nebengjek_plugins.notifications:notifications",
        )
    )
)
PLUGIN_SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "plugins").rglob("*.py")))
PLUGIN_CODES = set(re.findall(r'\b(?:code|error)="([A-Z_]+)"', PLUGIN_SOURCE))
PLUGIN_NAMES = {
    *(module.name for module in WITH_PLUGINS.modules),
    *(event for module in WITH_PLUGINS.modules for event in module.frames),
    *(command.event for module in WITH_PLUGINS.modules for command in module.commands),
    *(spec.name for spec in WITH_PLUGINS.streams),
}
STREAM_NAMES = {spec.name for spec in STREAMS}
PASSWORDS = {user.password_variable for user in permissions.users(APP.modules)}
TABLES = metadata.tables


def _metrics() -> set[str]:
    metrics = telemetry.Metrics(pod_id="pod")
    health = Health(
        status=ConnectionStatus.UP,
        where="",
        connection=Connection(status=ConnectionStatus.UP, where=""),
        established=True,
        consumers=[],
        breakers={},
        outbox_backlog=0,
        dead_letters=0,
        orphans=[],
    )
    metrics.observe_health(health)
    counters = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in metrics.registry.collect()
    }
    return {name for name in counters if name.startswith("nebengjek_")}


def _commands(group: click.Group, path: str = "nebengjek") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


COMMANDS = dict(_commands(cli))


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


# -- settings


def _shown(key: str, value: Any) -> str:
    if key in ("auth.jwt_secret", "admin.api_key"):
        return "a well-known one"
    if value in (None, ()):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_every_setting_is_listed_with_its_default() -> None:
    table = {codes_of(row[0])[0]: row[1] for row in rows(section(OPERATIONS, "Settings")) if len(row) == 3}
    defaults = {}
    for key in KEYS:
        part, _, name = key.rpartition(".")
        defaults[key] = _shown(key, getattr(getattr(Settings(), part) if part else Settings(), name))
    assert table == defaults


def test_reference_names_are_listed() -> None:
    table = {codes_of(row[0])[0]: codes_of(row[1])[0] for row in rows(section(OPERATIONS, "Settings")) if len(row) == 2}
    assert table == REFERENCE_NAMES


def test_the_rules_name_the_defaults_that_there_are() -> None:
    found = 0
    for row in rows(DOMAIN):
        keys = [key for key in codes_of(row[1]) if key in KEYS] if len(row) == 3 else []
        if keys:
            part, _, name = keys[0].partition(".")
            value = getattr(getattr(Settings(), part), name)
            number = re.match(r"[\d,.]+", row[2])
            said = float(number[0].replace(",", "")) if number else row[2].split(";")[0] != "off"
            assert said == value, keys[0]
            found += 1
    assert found >= 20


@pytest.mark.parametrize("name", DOCS)
def test_variables_are_settings(name: str) -> None:
    for variable in re.findall(r"NEBENGJEK__([A-Z_]+)", DOCS[name]):
        # SECTION__KEY: the form; MATCH__RADIUS: the mistake that the README makes on purpose.
        assert variable.lower().replace("__", ".") in KEYS or variable in ("SECTION__KEY", "MATCH__RADIUS"), variable


# -- events, frames, queries


def test_every_event_is_listed_with_who_hears_it() -> None:
    table = {codes_of(row[0])[0]: set(codes_of(row[3])) for row in rows(section(BUS, "Events"))}
    assert table.keys() == EVENTS
    for event, consumers in table.items():
        assert {name for name in consumers if name != "users"} == CONSUMERS.get(event, set()), event


def test_streams_are_listed_as_they_are() -> None:
    table = {
        codes_of(row[0])[0]: [re.sub(r"[`,]", "", cell) for cell in row[1:]] for row in rows(section(BUS, "Streams"))
    }
    assert table == {
        spec.name: [
            *spec.subjects,
            spec.retention.value,
            spec.storage.value,
            f"{spec.max_age / HOUR:.0f} h",
            str(spec.max_bytes // MIB),
            str(spec.max_msgs),
        ]
        for spec in STREAMS
    }


def test_every_query_is_listed() -> None:
    assert {name for row in rows(section(BUS, "Queries")) for name in codes_of(row[0])} == QUERIES


def test_every_header_is_listed() -> None:
    said = {name for row in rows(section(BUS, "Headers")) for name in codes_of(row[0])}
    constants = [codec, tracing, queries, dead_letters]
    names = {
        value
        for module in constants
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"[A-Z][a-z]+(-[A-Z][a-z]+)+", value)
    }
    assert said >= {*names, MSG_ID, tracing.TRACEPARENT, tracing.TRACESTATE, codec.PRODUCER}
    assert said <= {*names, MSG_ID, tracing.TRACEPARENT, tracing.TRACESTATE, codec.PRODUCER}


def test_every_frame_is_listed() -> None:
    said = {codes_of(row[0])[0] for row in rows(section(PROTOCOL, "What a phone says"))}
    assert said == SAYS.keys()
    told = {name for row in rows(section(PROTOCOL, "What the server says")) for name in codes_of(row[0])}
    assert told == FRAMES_OUT


def test_the_fields_of_what_a_phone_says_are_those_of_the_frames() -> None:
    for row in rows(section(PROTOCOL, "What a phone says")):
        fields = {field.name for field in msgspec.structs.fields(SAYS[codes_of(row[0])[0]])}
        said = re.sub(r"\{[^}]*\}", "", " ".join(codes_of(row[1])))
        named = {word.rstrip("?") for word in re.split(r"[\s,:]+", said) if word}
        assert named == fields or named == fields - {"reason"}, row[0]


def test_close_codes_are_listed() -> None:
    said = {row[0] for row in rows(section(PROTOCOL, "Close codes"))}
    by_name = {delivery.SLOW_PHONE, delivery.TOKEN_ENDED, delivery.START_ANEW}
    by_name |= {websocket.BAD_FRAMES_CODE, delivery.TRY_AGAIN, delivery.TOO_MANY}
    ours = by_name | {1009, 1011, 1012, 4500}
    assert said == {str(code) for code in ours}


def test_every_code_is_listed() -> None:
    assert {code for row in rows(section(PROTOCOL, "Codes")) for code in codes_of(row[0])} == CODES


def test_why_a_proposal_ends_is_listed() -> None:
    table = [row for row in rows(section(DOMAIN, "Matching")) if codes_of(row[0])[:1] and len(row) == 3]
    said = {codes_of(row[0])[0] for row in table} & set(get_args(EndReason))
    assert said == set(get_args(EndReason))


# -- routes


def _routes(text: str) -> set[str]:
    found = set()
    for span in spans(text):
        if match := re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) (/[^\s?]*)(\?\S*)?", span):
            found.add(f"{match[1]} {match[2]}")
    return found


def test_every_route_is_listed() -> None:
    assert _routes(PROTOCOL) == ROUTES


@pytest.mark.parametrize("name", DOCS)
def test_routes_that_are_named_are_there(name: str) -> None:
    assert _routes(DOCS[name]) <= _served(WITH_PLUGINS)


# -- commands


def _lines(text: str) -> list[str]:
    """Each place where a command may stand: spans of prose, lines of shells."""
    shells = [*fenced(text, "console"), *fenced(text, "bash")]
    return [*spans(text), *(line for shell in shells for line in shell.splitlines())]


@pytest.mark.parametrize("name", DOCS)
def test_commands_that_are_named_are_there(name: str) -> None:
    for line in _lines(DOCS[name]):
        match = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*nebengjek((?: --settings \S+)?)((?: [a-z][a-z-]*)+)(.*)", line)
        if match is None:
            continue
        command = "nebengjek"
        for word in match[2].split():
            if f"{command} {word}" not in COMMANDS:
                assert command in COMMANDS, line
                assert not isinstance(COMMANDS[command], click.Group), line
                break
            command += f" {word}"
        assert set(re.findall(r"--[a-z-]+", match[3])) <= options_of(COMMANDS[command]) | {"--help"}, line


def test_every_command_is_listed_with_options_that_it_has() -> None:
    named: set[str] = set()
    for row in rows(section(OPERATIONS, "The command line")):
        commands = codes_of(row[0])
        named.update(commands)
        options = {option for option in codes_of(row[1]) if option.startswith("--")}
        assert options <= set().union(*(options_of(COMMANDS[command]) for command in commands)), row[0]
    leaves = {name for name, command in COMMANDS.items() if not isinstance(command, click.Group)}
    assert named == leaves
    for name in {" ".join(path.split()[:2]) for path in COMMANDS}:
        assert name in README


@pytest.mark.parametrize("name", DOCS)
def test_make_targets_are_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {target for line in _lines(DOCS[name]) for target in re.findall(r"(?:^|\$ )make ([a-z]+)$", line)}
    assert named <= targets
    assert name != "README.md" or {"demo", "test"} <= named


# -- tables and pictures


def test_the_picture_of_the_tables_is_the_tables() -> None:
    (picture,) = [block for block in fenced(README, "mermaid") if block.startswith("erDiagram")]
    drawn = dict(re.findall(r"^    (\w+) \{\n(.*?)^    \}", picture, re.M | re.S))
    assert drawn.keys() == TABLES.keys()
    for name, body in drawn.items():
        lines = [line.split() for line in body.splitlines()]
        assert {line[1] for line in lines} <= set(TABLES[name].c.keys()), name
        keys = {line[1] for line in lines if "PK" in line}
        assert keys == {column.name for column in TABLES[name].primary_key}, name
    for one, other in re.findall(r"^    (\w+) \S+--\S+ (\w+) :", picture, re.M):
        assert {one, other} <= TABLES.keys()


def test_tables_that_are_named_are_there() -> None:
    for text in DOCS.values():
        assert set(re.findall(r"tables?\s+`(\w+)`", text)) <= TABLES.keys()


def test_the_states_that_are_drawn_are_the_states() -> None:
    diagrams = [block for block in fenced(DOMAIN, "mermaid") if block.startswith("stateDiagram-v2")]
    drawn = [set(re.findall(r"\b[A-Z][A-Z_]+\b", diagram)) for diagram in diagrams]
    assert drawn == [set(get_args(MatchState)), set(get_args(RideState))]


@pytest.mark.parametrize("name", DOCS)
def test_blocks_are_closed_and_pictures_are_of_a_kind_there_is(name: str) -> None:
    assert len(re.findall(r"^```", DOCS[name], re.M)) == 2 * len(_FENCE.findall(DOCS[name]))
    for picture in fenced(DOCS[name], "mermaid"):
        assert re.match(r"(flowchart (LR|TB)|sequenceDiagram|erDiagram|stateDiagram-v2)\n", picture)
        assert picture.count("subgraph") == len(re.findall(r"^\s*end$", picture, re.M))


# -- everything else that is named


def test_every_metric_is_listed() -> None:
    table = {codes_of(row[0])[0] for row in rows(section(OPERATIONS, "Metrics"))}
    assert table == _metrics()
    assert set(re.findall(r"`(nebengjek_[a-z_]+)`", OPERATIONS)) == table


def test_every_rule_that_the_code_cites_is_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "nebengjek" / "bus").glob("*.py"))
    cited = set(re.findall(r"(?:\(|[Rr]ules? )([NPDRCLFU]\d{1,2})\b", code))
    assert cited
    assert cited <= set(re.findall(r"\*\*([NPDRCLFU]\d{1,2})\*\*", BUS))


def _packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return {re.split(r"[\[<>=]", name)[0] for name in wanted} - {"nebengjek"}


def test_each_package_has_its_reason() -> None:
    text = section(README, "What it is built on")
    tools = text[text.index("For tests") :].partition("Not used")[0]
    extras = {"postgres", "speed", "sealed", "telemetry", "profiles", "notifications", "dev"}
    # The extras openai and anthropic are called as what they bring.
    table = {name for row in rows(text) for name in codes_of(row[0])} - extras
    assert table | (set(codes_of(tools)) - extras) == _packages()


def _file_names() -> set[str]:
    folders = ("nebengjek", "plugins", "settings", "docs", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    names = {path.name for path in paths} | {str(path.relative_to(ROOT)).removeprefix("plugins/") for path in paths}
    modules = {".".join(path.with_suffix("").relative_to(ROOT).parts) for path in (ROOT / "benchmarks").glob("*.py")}
    return names | modules | {path.name for path in ROOT.iterdir()}


FILES = _file_names()
SAID_IN_LOGS = set(re.findall(r'log\.\w+\(\s*"([a-z_.]+)"', SOURCE))
OTHERS = {
    *re.findall(r'"((?:pod|outbox)\.[a-z_.]+)"', SOURCE),
    *(f"bus.{name}" for name in dir(MessageBus)),
    *(f"{table.name}.{column}" for table in TABLES.values() for column in table.c.keys()),  # noqa: SIM118
    "phone.py",
    "souvenir.py",
    "souvenir.toml",
}
"""``phone.py`` and the files of ``souvenir``: what a reader of the README and of docs/plugins.md writes."""


@pytest.mark.parametrize("name", DOCS)
def test_dotted_names_are_there(name: str) -> None:
    known = {*KEYS, *EVENTS, *SAYS, *FRAMES_OUT, *QUERIES, *SAID_IN_LOGS, *OTHERS, *FILES, *PLUGIN_NAMES}
    for word in words(DOCS[name]):
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word):
            assert word in known, word


@pytest.mark.parametrize("name", DOCS)
def test_words_in_capitals_are_there(name: str) -> None:
    plain = {
        "CAPITALS",
        "EXTRAS",
        "FILE",
        "OPEN",
        "PATH",
        "PYTHONPATH",
        "POST",
        "PATCH",
        "DELETE",
        "NEBENGJEK_SETTINGS",
        "NEBENGJEK_URL",
    }
    known = CODES | STATES | STREAM_NAMES | PASSWORDS | PLUGIN_CODES | PLUGIN_NAMES | {*REFERENCE_NAMES, *plain}
    for word in words(_SQL.sub("", DOCS[name])):
        if re.fullmatch(r"[A-Z][A-Z_]{3,}", word) and not word.startswith("NEBENGJEK__"):
            assert word in known, word


@pytest.mark.parametrize("name", DOCS)
def test_files_that_are_named_are_there(name: str) -> None:
    for word in words(DOCS[name]):
        if re.fullmatch(r"[\w.][\w./-]*\.(py|toml|md|json|yml|conf|example)", word):
            assert word in FILES | OTHERS, word


# -- links


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


ANCHORS = {
    name: {_slug(line) for line in re.findall(r"^#+ (.+)$", _blank_code(text), re.M)} for name, text in DOCS.items()
}


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _blank_code(DOCS[name])):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in ANCHORS[str(path.resolve().relative_to(ROOT))], target


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README))
    assert {name for name in DOCS if name.startswith("docs/")} <= linked


# -- the ride of the README


def test_the_readmes_phone_is_python_and_says_frames() -> None:
    ride = section(README, "A ride, by hand")
    (script,) = fenced(ride, "python")
    ast.parse(script)
    said = []
    for block in fenced(ride, "text"):
        for line in block.splitlines():
            event, _, data = line.partition(" ")
            if event != "wait":
                msgspec.json.decode(data, type=SAYS[event])
                said.append(event)
    assert {
        "user.beacon",
        "user.finder",
        "match.accept",
        "ride.start",
        "location.update",
        "ride.arrive",
        "ride.pay",
    } == {*said}
    bodies = [json.loads(body) for body in re.findall(r"-d '(\{.*?\})'", ride)]
    assert [set(body) for body in bodies] == [{"full_name"}, {"full_name", "vehicle_type", "vehicle_plate"}]
