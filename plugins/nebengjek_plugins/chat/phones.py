"""What is written, on the phones it concerns; and when the two of a ride may write to each other."""

from datetime import timedelta

from nebengjek.clock import Clock
from nebengjek.contracts.match import MatchAccepted, MatchRejected
from nebengjek.contracts.rides import RideCancelled, RideCompleted, RidePickup
from nebengjek.database import Database
from nebengjek.realtime.delivery import Delivery
from nebengjek_plugins.chat import store
from nebengjek_plugins.chat.contracts import ChatAnswered, ChatMarked, ChatMessage, SessionMarks
from nebengjek_plugins.chat.service import RIDE


class Phones:
    """An event is acknowledged when its frame is in the mailbox of everybody concerned."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    async def message(self, event: ChatMessage | ChatAnswered) -> None:
        for user_id in event.recipients:
            key = f"chat.message-{event.message_id}"
            await self._delivery.deliver(user_id, "chat.message", event.message, message_id=key)

    async def marked(self, event: ChatMarked) -> None:
        for user_id in event.recipients:
            said = SessionMarks(session_id=event.session_id, marks=event.marks)
            self._delivery.show(user_id, "chat.marks", said)


class RideSessions:
    """From ``match.accepted`` until half an hour after the ride; its events may come in any order."""

    def __init__(self, database: Database, clock: Clock, *, closes_after: float) -> None:
        self._database = database
        self._clock = clock
        self._closes_after = timedelta(seconds=closes_after)

    async def accepted(self, event: MatchAccepted) -> None:
        await self._open(event.match_id, event.match.passenger_id, event.match.driver_id)

    async def pickup(self, event: RidePickup) -> None:
        await self._open(event.match_id, event.passenger_id, event.driver_id)

    async def rejected(self, event: MatchRejected) -> None:
        """An accepted match for which no ride was opened."""
        if event.match.reason == "failed":
            await self._end(event.match_id, event.match.passenger_id, event.match.driver_id)

    async def ended(self, event: RideCompleted | RideCancelled) -> None:
        await self._end(event.match_id, event.passenger_id, event.driver_id)

    async def _open(self, match_id: str, passenger_id: str, driver_id: str) -> None:
        async with self._database.begin() as tx:
            await store.make_session(tx, f"{RIDE}{match_id}", "ride", passenger_id, driver_id, self._clock.now())

    async def _end(self, match_id: str, passenger_id: str, driver_id: str) -> None:
        session_id = f"{RIDE}{match_id}"
        async with self._database.begin() as tx:
            await store.make_session(tx, session_id, "ride", passenger_id, driver_id, self._clock.now())
            await store.close_session(tx, session_id, self._clock.now() + self._closes_after)
