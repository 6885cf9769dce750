"""A plugin that hears of accounts and fails three times in ten, after its work and before the commit."""

import random
from collections import Counter
from collections.abc import Sequence

from nebengjek.bus.handling import Context
from nebengjek.bus.messaging import MessageBus
from nebengjek.contracts.users import UserCreated, UserUpdated
from nebengjek.database import Database
from nebengjek.module import Module, on

SHARE = 0.3
OURS = "0192f0bf-0000-7e75-839f-"
"""So begin the users whose events it minds: nobody else need wait for its retries."""

effects: Counter[tuple[str, int]] = Counter()
"""How often the effect of an event (user, version) was committed."""
fails: Counter[bool] = Counter()
"""Calls that failed, and calls that did not."""


def failing(bus: MessageBus, database: Database) -> Sequence[Module]:
    """Counts, so it needs the inbox: what is delivered twice must be counted once."""
    dice = random.Random(2)

    async def heard(event: UserCreated | UserUpdated, context: Context) -> None:
        if not event.user_id.startswith(OURS):
            return
        async with database.begin() as tx:
            first = await bus.inbox.first(tx, context)
            fail = dice.random() < SHARE
            fails[fail] += 1
            if fail:
                raise RuntimeError("three in ten")
        effects[event.user_id, event.version] += first

    return [Module(name="failing", hears=[on(UserCreated, heard), on(UserUpdated, heard)])]
