"""Handled twice, effect once: which consumer has handled which message, written in the handler's transaction."""

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.handling import Context
from nebengjek.bus.tables import inbox
from nebengjek.clock import Clock
from nebengjek.sql import insert_ignore

KEEP_SECONDS = 15 * 24 * 3600.0
"""Longer than any stream or dead letter is kept, so that nothing older can come again."""


class Inbox:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def first(self, tx: AsyncConnection, context: Context) -> bool:
        """True when this consumer sees the message for the first time; False: its effect is there already."""
        row = {"consumer": context.consumer, "message_id": context.message_id, "handled_at": self._clock.seconds()}
        return await insert_ignore(tx, inbox, row)

    async def forget_old(self, tx: AsyncConnection) -> int:
        """Drop what is older than KEEP_SECONDS; return how many."""
        result = await tx.execute(delete(inbox).where(inbox.c.handled_at < self._clock.seconds() - KEEP_SECONDS))
        return result.rowcount
