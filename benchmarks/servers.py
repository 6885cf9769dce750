"""The product with everything embedded, or on a real nats-server, Valkey and PostgreSQL out of wheels."""

import contextlib
from collections.abc import Iterator

from benchmarks.wire import Child, nebengjek
from tests.servers import nats_server, postgres_server, valkey_server


@contextlib.contextmanager
def backend(name: str) -> Iterator[Child]:
    if name == "embedded":
        with nebengjek() as server:
            yield server
        return
    with nats_server() as nats, valkey_server() as redis_url, postgres_server() as postgres:
        database_url = postgres.new_database()
        with nebengjek(NATS_URL=nats.url, REDIS_URL=redis_url, DATABASE_URL=database_url) as server:
            yield server
