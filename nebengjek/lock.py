"""One process at a time: a lock file that the operating system lets go of when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nebengjek.errors import Misconfigured


def lock_path(database: Path) -> Path:
    """``nebengjek.sqlite3.lock``, beside the database whose embedded bus it guards."""
    return database.with_name(f"{database.name}.lock")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold ``path`` for as long as the block runs. Raises Misconfigured when another process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise Misconfigured(f"database.url: {path} cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise Misconfigured(
                f"{path} is held by process {holder}: what is embedded in a process has one process only; "
                "stop that one, or set NATS_URL, REDIS_URL and DATABASE_URL to run several"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        # The file stays: removing it would let two processes lock two files of the same name.
        yield
    finally:
        os.close(descriptor)
