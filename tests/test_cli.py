"""The command line, as people and scripts meet it: words, exit codes, and a server that starts, is asked and ends.

Over 300 lines because all of it speaks to one program, and most of it starts the same server.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from nebengjek.app import App
from nebengjek.bus.messages import MSG_ID
from nebengjek.bus.specs import ConsumerSpec
from nebengjek.cli import MODULES, cli
from nebengjek.server import Server
from nebengjek.settings import DEVELOPMENT_ADMIN_KEY, load
from nebengjek.simulate.options import DemoOptions, SimulationOptions
from nebengjek.streams import STREAMS
from tests.servers import PostgresServer, nats_server, valkey_server

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"


def invoke(*words: str, env: dict[str, str] | None = None, text: str | None = None) -> Result:
    # A wide terminal: panels wrap at its width.
    return CliRunner().invoke(cli, list(words), env={"COLUMNS": "400", **(env or {})}, input=text)


# -- words


def test_help_groups_the_commands_and_gives_examples() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for words in ("Ride", "Look after a running server", "Set up", "nebengjek demo", "DATABASE_URL=… nebengjek run"):
        assert words in result.output
    for command in cli.commands:
        assert command in result.output


def test_every_command_and_option_says_what_it_is_for() -> None:
    def check(command: Any, path: str) -> None:
        assert command.help, path
        for name, inner in getattr(command, "commands", {}).items():
            check(inner, f"{path} {name}")

    check(cli, "nebengjek")


def test_version() -> None:
    assert invoke("--version").output.startswith("nebengjek, version 0.")


def loaded_by(code: str, *names: str) -> set[str]:
    program = f"import sys; {code}; print([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(msgspec.convert(json.loads(done.stdout.replace("'", '"')), list[str]))


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    heavy = ("litestar", "sqlalchemy", "httpx", "prometheus_client", "nats", "redis", "nebengjek.simulate")
    assert loaded_by("import nebengjek.cli", *heavy) == set()


def test_the_embedded_application_imports_nothing_that_only_servers_need() -> None:
    made = "from nebengjek.server import App; from nebengjek.settings import load; App(load())"
    heavy = ("nats", "redis", "asyncpg", "alembic", "opentelemetry.sdk", "httpx", "pydantic")
    assert loaded_by(made, "litestar", *heavy) == {"litestar"}


# -- settings


def test_settings_show_masks_and_names_where_a_value_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[match]\nradius_km = 2.5\n")
    env = {"NEBENGJEK__AUTH__JWT_SECRET": "a-secret-of-more-than-thirty-two-bytes", "REDIS_URL": "redis://:pw@r/0"}
    result = invoke("--settings", str(path), "settings", "show", env=env)
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    assert ["match.radius_km", "2.5", str(path)] in lines
    assert ["auth.jwt_secret", "********", "NEBENGJEK__AUTH__JWT_SECRET"] in lines
    assert ["redis.url", "redis://:********@r/0", "REDIS_URL"] in lines
    assert ["web.port", "8000"] in lines
    changed = json.loads(invoke("--settings", str(path), "settings", "show", "--json", "--changed", env=env).output)
    assert changed["match.radius_km"] == 2.5
    assert "web.port" not in changed


@pytest.mark.parametrize("words", [("run",), ("settings", "show"), ("db", "upgrade"), ("plugins",), ("streams",)])
def test_a_wrong_setting_refuses_every_command_that_needs_them(words: tuple[str, ...]) -> None:
    result = invoke(*words, env={"NEBENGJEK__MATCH__RADIUS": "3"})
    assert result.exit_code == 2
    assert "NEBENGJEK__MATCH__RADIUS: there is no such setting; did you mean" in result.output


# -- run refuses


@pytest.mark.parametrize(
    "words",
    [
        ("--workers", "2"),
        ("--workers", "2", "--modules", "match,rides"),
        ("--modules", "users,location"),
        ("--modules", "operator"),
    ],
)
def test_several_processes_over_embedded_parts_are_refused(words: tuple[str, ...]) -> None:
    result = invoke("run", *words)
    assert result.exit_code == 2
    assert f"{words[0]} {words[1]} means several processes" in result.output
    assert "set NATS_URL and REDIS_URL and DATABASE_URL" in result.output
    part = invoke("run", *words, env={"NATS_URL": "nats://127.0.0.1", "REDIS_URL": "redis://127.0.0.1"})
    assert part.exit_code == 2
    assert "the database (SQLite) would be embedded" in part.output
    off = invoke("run", *words, env={"NATS_URL": "nats://127.0.0.1", "JETSTREAM_ENABLED": "false"})
    assert "the bus" in off.output


AWAY = {"DATABASE_URL": "postgresql://app:hunter2@127.0.0.1:9/x", "REDIS_URL": "redis://:hunter2@127.0.0.1:9/0"}
ALL_AWAY = {**AWAY, "NATS_URL": "nats://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (
            (),
            {"DATABASE_URL": AWAY["DATABASE_URL"]},
            "database.url: postgresql://app:***@127.0.0.1:9/x does not answer",
        ),
        ((), {"REDIS_URL": AWAY["REDIS_URL"]}, "redis.url: redis at 127.0.0.1:9/0 does not answer"),
        (
            ("--workers", "2", "--modules", "match"),
            ALL_AWAY,
            "database.url: postgresql://app:***@127.0.0.1:9/x does not",
        ),
    ],
)
def test_a_store_that_is_away_at_the_start_is_named_in_one_line(
    tmp_path: Path, words: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    done = start(tmp_path, *words, **env)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"Error: {said}"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "ready on" not in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_a_file_that_is_no_database_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite3").write_bytes(b"no database" * 100)
    done = start(tmp_path, DATABASE_URL="sqlite:///x.sqlite3")
    assert done.returncode == 2
    assert done.stderr == "Error: database.url: x.sqlite3 cannot be used: file is not a database\n"


@pytest.mark.parametrize("words", [("--modules", "user"), ("--modules", ","), ("--workers", "0"), ("--port", "70000")])
def test_options_that_cannot_be(words: tuple[str, str]) -> None:
    result = invoke("run", *words)
    assert result.exit_code == 2
    assert "Invalid value" in result.output


def test_the_modules_are_those_of_the_application() -> None:
    assert tuple(module.name for module in App(load()).modules) == MODULES


# -- demo and simulate


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_options_reach_the_simulation_and_its_code_comes_back(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips, out = tmp_path / "trips.csv", tmp_path / "out.json"
    trips.touch()
    seen: list[Any] = []

    async def ride(options: Any) -> int:
        seen.append(options)
        return 7

    monkeypatch.setattr(f"nebengjek.simulate.{command}", ride)
    words = ["--trips", str(trips)] if command == "simulate" else []
    expected: Any = SimulationOptions(trips=trips) if command == "simulate" else DemoOptions()
    assert invoke(command, *words).exit_code == 7
    assert seen == [expected]
    invoke(
        command, *words, "--drivers", "3", "--url", "http://x", "--json", str(out), "--speed", "2.5", "--noise-m", "1"
    )
    changed = msgspec.structs.replace(expected, drivers=3, url="http://x", json=out, speed=2.5, noise_m=1.0)
    assert seen[1] == changed


def test_simulate_wants_a_file_that_is_there() -> None:
    assert invoke("simulate").exit_code == 2
    assert invoke("simulate", "--trips", "nowhere.csv").exit_code == 2


# -- db, plugins, asyncapi


def test_db_upgrade_and_revision_check(tmp_path: Path) -> None:
    env = {"DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3"}
    before = invoke("db", "revision-check", env=env)
    assert (before.exit_code, before.output.startswith("empty, newest ")) == (1, True)
    assert not (tmp_path / "x.sqlite3").exists()
    assert invoke("db", "upgrade", env=env).output.startswith("empty → ")
    assert invoke("db", "upgrade", env=env).output.startswith("already at ")
    assert invoke("db", "revision-check", env=env).exit_code == 0


def test_a_database_that_is_away_is_unavailable() -> None:
    result = invoke("db", "upgrade", env={"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/x"})
    assert result.exit_code == 3
    assert "database.url: postgresql://nobody@127.0.0.1:9/x does not answer" in result.output


def test_plugins_are_listed_with_what_they_hear_and_serve_and_a_broken_one_is_named() -> None:
    assert "no plugins" in invoke("plugins").output
    paths = ("nebengjek_plugins.profiles:profiles", "no_such_package:x")
    env = {"NEBENGJEK__PLUGINS": ",".join(paths)}
    result = invoke("plugins", env=env)
    assert result.exit_code == 1
    assert "there is no module no_such_package" in result.output
    assert "GET /users/me/profile" in result.output
    assert "user.created  (user_created_profiles)" in result.output
    good, bad = json.loads(invoke("plugins", "--json", env=env).output)
    assert (good["name"], good["error"], bad["modules"]) == ("profiles", None, [])
    served, *others = good["modules"]
    assert served["says"] == ["user.avatar.uploaded"]
    assert {name for one in others for name in one["hears"].values()} >= {"user_created_profiles_search"}


def test_asyncapi_is_written_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "asyncapi.json"
    assert invoke("asyncapi", "--write", str(path)).exit_code == 0
    assert invoke("asyncapi").output == path.read_text()
    assert invoke("asyncapi", "--check", str(path)).exit_code == 0
    path.write_text("{}")
    stale = invoke("asyncapi", "--check", str(path))
    assert stale.exit_code == 1
    assert "asyncapi --write" in stale.output


# -- asking a server


@pytest.mark.parametrize(
    "words", [("streams",), ("streams", "info", "X"), ("consumers",), ("dead-letters", "show", "1"), ("pods",)]
)
def test_no_server_says_how_to_start_one(words: tuple[str, ...]) -> None:
    result = invoke(*words, "--url", NOWHERE)
    assert result.exit_code == 3
    assert f"no server answers at {NOWHERE}" in result.output
    assert "nebengjek run" in result.output


def test_dead_letters_are_named_or_all_of_them() -> None:
    for words in [("replay",), ("drop", "--yes"), ("replay", "1", "--all")]:
        result = invoke("dead-letters", *words)
        assert result.exit_code == 2
        assert "--all" in result.output


def start(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``nebengjek run`` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "nebengjek", "run", "--port", "0", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}", "COLUMNS": "80", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@dataclass
class Process:
    """``nebengjek run`` in a process of its own."""

    url: str
    greeting: list[str]
    popen: subprocess.Popen[str]
    log: Path

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(40)

    def ask(self, *words: str) -> Result:
        return invoke(*words, "--url", self.url)

    def rows(self, *words: str) -> list[dict[str, Any]]:
        result = self.ask(*words, "--json")
        assert result.exit_code == 0, result.output
        rows: list[dict[str, Any]] = json.loads(result.output)
        return rows


@contextmanager
def running(folder: Path, *words: str, log: str = "log.jsonl", **env: str) -> Iterator[Process]:
    path = folder / log
    with (
        path.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-m", "nebengjek", "run", "--port", "0", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}", **env},
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        ) as popen,
    ):
        assert popen.stdout is not None
        try:
            greeting = []
            for line in popen.stdout:
                greeting.append(line.rstrip())
                if line.startswith("ready on "):
                    yield Process(line.split()[2], greeting, popen, path)
                    return
            pytest.fail(f"not ready: {greeting} {path.read_text()}")
        finally:
            popen.kill()


def test_a_server_from_its_greeting_to_its_end(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.greeting[0].startswith("NebengJek 0.")
        parts = {line.split()[0]: line.split()[-1] for line in server.greeting if "  embedded" in line}
        assert parts["database"] == "nebengjek.sqlite3"
        assert len([line for line in server.greeting if " embedded " in line]) == 3
        assert httpx.get(f"{server.url}/health/ready").json()["status"] == "up"
        for path in ("/metrics", "/asyncapi", "/schema/openapi.json"):
            assert httpx.get(f"{server.url}{path}").status_code == 200, path

        second = start(tmp_path)
        assert second.returncode == 2
        assert f"nebengjek.sqlite3.lock is held by process {server.popen.pid}" in second.stderr

        streams = {row["name"]: row for row in server.rows("streams")}
        assert streams.keys() == {spec.name for spec in STREAMS}
        assert server.rows("streams", "ls") == list(streams.values())
        table = server.ask("streams").output
        assert "RIDE_STREAM" in table
        assert "200.0 MiB" in table
        info = server.ask("streams", "info", "RIDE_STREAM").output
        assert "ride_pickup_match" in info
        assert "ride_pickup_match" in server.ask("consumers", "--stream", "RIDE_STREAM").output
        assert server.ask("dead-letters").output == "no dead letters\n"
        (pod,) = server.rows("pods")
        assert pod["embedded"] == ["bus", "fast state", "database"]
        assert pod["pod_id"] in server.greeting[0]

        unknown = server.ask("streams", "info", "NO_STREAM")
        assert (unknown.exit_code, "there is no stream NO_STREAM" in unknown.output) == (1, True)
        stranger = server.ask("streams", "--api-key", "wrong")
        assert (stranger.exit_code, "has another API key" in stranger.output) == (1, True)
        taken = invoke(
            "run", "--port", server.url.rpartition(":")[2], env={"DATABASE_URL": f"sqlite:///{tmp_path}/b.db"}
        )
        assert (taken.exit_code, "cannot listen on" in taken.output) == (2, True)

        assert server.end() == 0
        events = [json.loads(line)["event"] for line in server.log.read_text().splitlines()]
        assert "bus.drained" in events
    with running(tmp_path) as again:
        assert again.end(signal.SIGINT) == 0


async def ask(url: str, *words: str, text: str = "") -> tuple[int, str]:
    """In a thread: the server runs in this loop."""
    words = (*words, "--url", url, "--api-key", DEVELOPMENT_ADMIN_KEY)
    # Who names server and key needs no settings, not even good ones.
    result = await asyncio.to_thread(invoke, *words, env={"NEBENGJEK__NO__SUCH": "1"}, text=text)
    return result.exit_code, result.output


@asynccontextmanager
async def here(folder: Path, **env: str) -> AsyncIterator[Server]:
    """The server of ``nebengjek run``, in this process."""
    env = {"DATABASE_URL": f"sqlite:///{folder}/x.sqlite3", "NEBENGJEK__WEB__PORT": "0", **env}
    server = Server(App(load(env=env), sweeping=False))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    # Its log would be among what is printed here.
    with capture_logs():
        await server.startup()
        try:
            yield server
        finally:
            await server.shutdown()


async def test_dead_letters_and_unwanted_consumers_are_dealt_with(tmp_path: Path) -> None:
    async with here(tmp_path) as server:
        app = server.app
        await app.broker.create_consumer("USER_STREAM", ConsumerSpec(name="old", filters=("user.x",)))
        assert "USER_STREAM" in (await ask(server.url, "consumers"))[1]
        code, output = await ask(server.url, "consumers", "--prune", text="n\n")
        assert (code, "Delete USER_STREAM/old?" in output) == (1, True)
        code, output = await ask(server.url, "consumers", "--prune", "--yes", "--json")
        assert [row["name"] for row in json.loads(output)] == ["old"]
        assert (await ask(server.url, "consumers", "--prune"))[1] == "every consumer is wanted\n"

        # What cannot be taken back is asked for, unless somebody says so; "no" changes nothing.
        await app.broker.submit("ride.note.x", b"{}", {})
        for words, question in (
            (("streams", "purge", "RIDE_STREAM"), "Remove all 1 messages from RIDE_STREAM?"),
            (
                ("streams", "purge", "RIDE_STREAM", "--keep", "0", "--subject", "ride.*.x"),
                "of ride.*.x and but the newest",
            ),
            (("streams", "delete", "RIDE_STREAM", "--force"), "Delete RIDE_STREAM with 1 messages and"),
            (
                ("consumers", "delete", "ride_pickup_match", "--force"),
                "Delete RIDE_STREAM/ride_pickup_match, which has",
            ),
        ):
            code, output = await ask(server.url, *words, text="n\n")
            assert (code, question in output) == (1, True), output
        assert (await app.broker.stream_info("RIDE_STREAM")).messages == 1
        code, output = await ask(server.url, "streams", "purge", "RIDE_STREAM", "--yes", "--json")
        assert json.loads(output) == [{"name": "RIDE_STREAM", "purged": 1}]
        code, output = await ask(server.url, "streams", "delete", "RIDE_STREAM", "--yes")
        assert (code, "the application publishes to it" in output) == (1, True)
        code, output = await ask(server.url, "consumers", "delete", "ride_pickup_match", "--yes")
        assert (code, "a module hears through it" in output) == (1, True)
        code, output = await ask(server.url, "consumers", "info", "no_such")
        assert (code, "there is no consumer no_such" in output) == (1, True)
        code, output = await ask(server.url, "consumers", "pause", "ride_pickup_match", "--minutes", "5", "--json")
        assert json.loads(output)["paused_until"] is not None
        assert "paused until   -" in (await ask(server.url, "consumers", "resume", "RIDE_STREAM/ride_pickup_match"))[1]
        shown = (await ask(server.url, "consumers", "info", "ride_pickup_match"))[1]
        assert "filters        ride.pickup.*" in shown
        assert "ride_pickup_match" in (await ask(server.url, "consumers", "ls", "--stream", "RIDE_STREAM"))[1]

        await bury(app)
        letters = await app.bus.dead_letters.list()
        code, output = await ask(server.url, "dead-letters")
        assert code == 0
        assert output.count("ride.cancelled.r") == len(letters) >= 2
        code, output = await ask(server.url, "dead-letters", "show", "1")
        assert "undecodable" in output
        assert "{not json" in output
        code, output = await ask(server.url, "dead-letters", "replay", "1")
        assert (code, letters[0].consumer in output) == (0, True)
        code, output = await ask(server.url, "dead-letters", "drop", "2", text="n\n")
        assert (code, "Forget 1 dead letter" in output) == (1, True)
        code, output = await ask(server.url, "dead-letters", "drop", "--all", "--yes")
        assert code == 0
        assert await app.bus.dead_letters.list() == []
        code, output = await ask(server.url, "dead-letters", "show", "1")
        assert (code, "there is no dead letter 1" in output) == (1, True)


async def bury(app: App) -> None:
    died = asyncio.Event()
    counted = app.metrics.dead_letter

    def dead_letter(consumer: str, reason: str) -> None:
        counted(consumer, reason)
        died.set()

    app.metrics.dead_letter = dead_letter  # type: ignore[method-assign]
    expected = sum(name.startswith("ride_cancelled") for _, name in app.bus._wanted)
    await app.broker.submit("ride.cancelled.r", b"{not json", {MSG_ID: "bad"})
    async with asyncio.timeout(10):
        while await app.bus.dead_letters.count() < expected:
            await died.wait()
            died.clear()


@pytest.mark.real
def test_several_processes_on_real_servers(tmp_path: Path, postgres: PostgresServer) -> None:
    """One runs the module users alone, and the others run in workers behind one port; or all run in each worker."""
    with nats_server() as nats, valkey_server() as redis:
        database = postgres.new_database()
        env = {"NATS_URL": nats.url, "REDIS_URL": redis, "DATABASE_URL": database}
        others = ("--modules", "location,match,rides")
        with (
            running(tmp_path, "--modules", "users", NATS_CLIENT_ID="phones", **env) as phones,
            running(tmp_path, "--workers", "2", *others, NATS_CLIENT_ID="p", log="workers.jsonl", **env) as server,
        ):
            assert httpx.get(f"{server.url}/health/live").json()["pod_id"] in ("p-1", "p-2")
            first = workers_of(server.popen.pid, without=set())
            heard = {pod["pod_id"]: pod["embedded"] for pod in server.rows("pods")}
            assert set(heard) <= {"phones", "p-1", "p-2"}
            assert not any(heard.values())
            killed = min(first)
            os.kill(killed, signal.SIGKILL)
            second = workers_of(server.popen.pid, without={killed})
            assert len(first & second) == 1
            assert httpx.get(f"{server.url}/health/live", timeout=30).status_code == 200

            with running(tmp_path, "--workers", "2", NATS_CLIENT_ID="all", log="all.jsonl", **env) as all_of_it:
                ready = httpx.get(f"{all_of_it.url}/health/ready", timeout=30)
                assert (ready.status_code, ready.json()["pod_id"] in ("all-1", "all-2")) == (200, True)
                assert all_of_it.end() == 0
            assert httpx.get(f"{phones.url}/health/ready").status_code == 200
            wrong = start(tmp_path, *others, **env | {"DATABASE_URL": database + "_not"})
            assert wrong.returncode == 2
            assert f'cannot be used: database "{database.rpartition("/")[2]}_not" does not exist' in wrong.stderr
            assert "Traceback" not in wrong.stderr

            assert server.end() == 0
            assert phones.end() == 0
            lines = [json.loads(line) for line in server.log.read_text().splitlines()]
            assert sum(line["event"] == "worker.died" for line in lines) == 1


def workers_of(pid: int, *, without: set[int], count: int = 2) -> set[int]:
    """The worker processes of ``pid``, when there are ``count`` and none is in ``without``."""
    deadline = time.monotonic() + 30
    workers: set[int] = set()
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = {int(child) for child in children if b"spawn_main" in command_of(int(child))}
        if len(workers) == count and not workers & without:
            return workers
        time.sleep(0.02)
    raise AssertionError(f"there are {workers}")


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize(("trusted", "second"), [("127.0.0.0/8", 200), ("10.0.0.0/8", 429), ("", 429)])
async def test_the_phones_address_is_what_a_trusted_proxy_says(tmp_path: Path, trusted: str, second: int) -> None:
    env = {"NEBENGJEK__AUTH__OTP_PER_ADDRESS": "1", "NEBENGJEK__WEB__TRUSTED_PROXIES": trusted}
    async with here(tmp_path, **env) as server, httpx.AsyncClient(base_url=server.url, timeout=30) as phone:

        async def status(number: int, address: str) -> int:
            body, headers = {"msisdn": f"08112345670{number}"}, {"X-Forwarded-For": address}
            return (await phone.post("/auth/otp/generate", json=body, headers=headers)).status_code

        assert [await status(1, "192.0.2.1"), await status(2, "192.0.2.1")] == [200, 429]
        assert await status(3, "192.0.2.2") == second
