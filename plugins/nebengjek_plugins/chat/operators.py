"""The people behind the desk: what the assistant handed over waits for them, and they answer in the same session."""

from msgspec import Struct

from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.message import uuid7
from nebengjek.database import Database
from nebengjek.errors import NotFound
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.contracts import ChatMessage, Message

SHOWN = 10


class Waiting(Struct, frozen=True, kw_only=True):
    """``messages``: the last ones of the session, oldest first."""

    handover: store.Handover
    messages: list[Message]


class Desk:
    def __init__(self, bus: MessageBus, database: Database, clock: Clock) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock

    async def queue(self, limit: int) -> list[Waiting]:
        async with self._database.read() as tx:
            waiting = await store.waiting_handovers(tx, limit)
            return [
                Waiting(handover=one, messages=list(reversed(await store.before(tx, one.session_id, None, SHOWN))))
                for one in waiting
            ]

    async def reply(self, session_id: str, text: str, *, close: bool) -> Message:
        """``close``: the session waits no longer. Raises NotFound: there is no such session of a user's."""
        async with self._database.begin() as tx:
            session = await store.session(tx, session_id)
            if session is None or session.kind != "desk":
                raise NotFound("no user has a session of this id")
            message = Message(
                message_id=uuid7(),
                session_id=session_id,
                number=await store.next_number(tx, session_id),
                role="operator",
                text=text,
                status="complete",
                created_at=self._clock.now(),
                correlation_id=uuid7(),
            )
            await store.add_message(tx, message, user_id=session.owner_id, status="complete")
            if close:
                await store.close_handover(tx, session_id, self._clock.now())
            await self._bus.outbox.add(
                tx,
                ChatMessage(
                    session_id=session_id,
                    message_id=message.message_id,
                    recipients=session.parties,
                    message=message,
                ),
            )
        return message
