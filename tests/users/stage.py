"""Accounts and phones on a bus in memory and a SQLite file, without the rest of the application."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from nebengjek import schema
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import ManualClock
from nebengjek.contracts.message import Event
from nebengjek.database import Database
from nebengjek.faststate import MemoryFastState
from nebengjek.module import Module, on
from nebengjek.realtime.delivery import Delivery
from nebengjek.realtime.mailbox import MemoryMailbox
from nebengjek.realtime.presence import MemoryPresence
from nebengjek.streams import streams
from nebengjek.tokens import Identity, Tokens
from nebengjek.users.accounts import Accounts
from nebengjek.users.service import UsersService

E = TypeVar("E", bound=Event)
PHONE = "+628111234567"


class Stage:
    """``said``: every event of the types that were asked for, in the order in which they were heard."""

    def __init__(self, path: Path, *hears: type[Event]) -> None:
        self.clock = ManualClock()
        self.database = Database(f"sqlite:///{path}")
        self.said: list[Any] = []
        self.bus = MessageBus(
            MemoryBroker(MemoryServer()), streams(), self.database.begin, pod_id="users", clock=self.clock
        )
        self.database.on_commit(self.bus.outbox.committed)
        self.state = MemoryFastState(self.clock)
        self.tokens = Tokens("a secret that is longer than thirty-two bytes", lifetime=86400, clock=self.clock)
        self.accounts = Accounts(
            self.bus, self.database, self.state, self.tokens, self.clock, refresh_days=30, token_hours=24
        )
        self.delivery = Delivery(MemoryMailbox(self.clock), MemoryPresence(self.clock), self.clock)
        self.users = UsersService(self.bus, self.database, self.delivery, self.clock, grace=30)
        module = Module(name="ear", hears=[on(event, self._hear) for event in hears])
        self.bus.wire(module.name, module.hears, (), ())

    async def _hear(self, event: Event) -> None:
        self.said.append(event)

    def heard(self, kind: type[E]) -> list[E]:
        return [event for event in self.said if isinstance(event, kind)]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until everything that was committed has been heard, and then some."""
        await self.settled()
        assert holds(), self.said

    async def settled(self) -> None:
        # A row leaves the outbox when its consumers have settled it.
        while await self.bus.outbox.size():
            await self.bus.broker.sleep(0.002)

    async def login(self, phone: str = PHONE) -> tuple[Identity, str]:
        """(who he is now, his refresh token)."""
        login = await self.accounts.login(phone)
        return self.tokens.read(login.token), login.refresh_token


@asynccontextmanager
async def stage(path: Path, *hears: type[Event]) -> AsyncIterator[Stage]:
    made = Stage(path / "users.sqlite3", *hears)
    await schema.upgrade(made.database)
    await made.bus.start()
    yield made
    await made.bus.drain(1.0)
    await made.database.close()
