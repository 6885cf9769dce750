"""Several processes on one port: each a pod of its own, started, watched and ended together."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread

import structlog
from msgspec import structs

from nebengjek.errors import Misconfigured, NebengJekError, Unavailable
from nebengjek.log import configure
from nebengjek.settings import Settings

BACKLOG = 2048
RESTART_SECONDS = 1.0

log = structlog.stdlib.get_logger("nebengjek.workers")


class _Stop(Exception):
    """SIGTERM or SIGINT."""


class Worker:
    """One process; ``ready``: it has said that it serves. ``refusal``: it has said why it cannot."""

    def __init__(
        self, number: int, settings: Settings, modules: Sequence[str] | None, listening: socket.socket
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.ready = False
        self.refusal: NebengJekError | None = None
        self.said, child = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(
            target=_work, args=(_own(settings, number), modules, listening, child), name=f"worker {number}", daemon=True
        )
        self.process.start()
        child.close()


def serve_many(
    settings: Settings,
    count: int,
    listening: socket.socket,
    *,
    modules: Sequence[str] | None,
    on_ready: Callable[[str], None],
) -> int:
    """Run ``count`` workers until a signal; 0 after a clean end, 1 when one died before it was ready.

    A worker that dies after it was ready is started again. Raises Unavailable or Misconfigured, as the first worker
    that says why it cannot start.
    """
    with _signals():
        workers: list[Worker] = []
        try:
            for number in range(1, count + 1):
                workers.append(Worker(number, settings, modules, listening))  # noqa: PERF401 - a signal may come between
            host, port = listening.getsockname()[:2]
            return _watch(workers, settings, modules, listening, lambda: on_ready(f"http://{host}:{port}"))
        except _Stop:
            return _end(workers, settings.nats.drain_timeout)


def _watch(
    workers: list[Worker],
    settings: Settings,
    modules: Sequence[str] | None,
    listening: socket.socket,
    all_ready: Callable[[], None],
) -> int:
    told = False
    while True:
        waited: list[int | Connection] = [worker.process.sentinel for worker in workers]
        waited += [worker.said for worker in workers if not worker.ready]
        wait(waited)
        for index, worker in enumerate(workers):
            ready = _is_ready(worker)
            if worker.process.is_alive():
                continue
            if not ready:
                _end(workers, settings.nats.drain_timeout)
                if worker.refusal is not None:
                    raise worker.refusal
                return 1
            log.error("worker.died", worker=worker.number, code=worker.process.exitcode)
            time.sleep(RESTART_SECONDS)  # one that dies at once must not be started a thousand times a second
            workers[index] = Worker(worker.number, settings, modules, listening)
        if not told and all(worker.ready for worker in workers):
            told = True
            all_ready()


def _end(workers: Sequence[Worker], drain_timeout: float) -> int:
    ending = [worker for worker in workers if worker.process.is_alive()]
    for worker in ending:
        worker.process.terminate()
    deadline = time.monotonic() + drain_timeout + 10
    for worker in ending:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            log.error("worker.killed", worker=worker.number)
            worker.process.kill()
            worker.process.join()
    # One that was still starting has no handler for the signal yet, and nothing to drain.
    clean = [worker.process.exitcode == 0 or not _is_ready(worker) for worker in ending]
    return 0 if all(clean) else 1


def _is_ready(worker: Worker) -> bool:
    if not worker.ready and worker.said.poll():
        with suppress(EOFError):
            said = worker.said.recv()
            worker.ready, worker.refusal = said is None, said and _refusal(*said)
    return worker.ready


def _own(settings: Settings, number: int) -> Settings:
    """Two pods must not share an id."""
    nats = settings.nats
    if nats.client_id is None:
        return settings
    return structs.replace(settings, nats=structs.replace(nats, client_id=f"{nats.client_id}-{number}"))


def _work(settings: Settings, modules: Sequence[str] | None, listening: socket.socket, said: Connection) -> None:
    # Only a worker needs the application: the parent stays small.
    from nebengjek.server import serve

    Thread(target=_follow_parent, name="parent", daemon=True).start()
    configure(level=settings.log.level, format=settings.log.format, audit=settings.log.audit)
    try:
        code = serve(settings, modules=modules, on_ready=lambda _: said.send(None), sockets=[listening])
    except NebengJekError as error:
        said.send((isinstance(error, Unavailable), str(error)))
        code = 1
    raise SystemExit(code)


def _refusal(away: bool, message: str) -> NebengJekError:
    return Unavailable("worker", message) if away else Misconfigured(message)


def _follow_parent() -> None:
    """A parent that was killed cannot end its workers: they notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections. Raises Misconfigured when somebody else has the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise Misconfigured(f"web.host, web.port: cannot listen on {host}:{port}: {error.strerror}") from error
        listening.listen(BACKLOG)
        yield listening


@contextmanager
def _signals() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Stop

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
