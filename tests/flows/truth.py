"""What must be true when a flow has come to rest, whatever happened on the way: the money, the ledgers, the locks."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Table, select

from nebengjek.database import Database
from nebengjek.match.store import engaged, matches
from nebengjek.rides.payments import simulated_charges
from nebengjek.rides.tables import ledger, payment_attempts, payments, rides
from nebengjek.users.store import engagements
from tests.flows.fleet import Fleet, Pair

OPEN_RIDE = ("PICKUP", "ONGOING", "ARRIVED")
STATES = ("beacon", "finder", "unavailable")
"""Frames that tell a state and name nothing: the same one may come again."""


async def check_books(database: Database) -> None:
    """Every bill is the sum of its ledger, paid at most once and never twice charged."""
    books = {table.name: await _rows(database, table) for table in (rides, ledger, payments, payment_attempts)}
    charged = await _rows(database, simulated_charges)
    assert _twice(ride.match_id for ride in books["rides"]) == []
    for ride in books["rides"]:
        entries = [entry for entry in books["ledger"] if entry.ride_id == ride.ride_id]
        assert sum(entry.distance_mm for entry in entries) == ride.distance_mm
        mine = [payment for payment in books["payments"] if payment.ride_id == ride.ride_id]
        assert len(mine) == (ride.status in ("ARRIVED", "COMPLETED")), ride.status
        if not mine:
            assert [charge for charge in charged if charge.key.startswith(ride.ride_id)] == []
            continue
        (payment,) = mine
        assert sum(entry.cost for entry in entries) == ride.total_cost
        assert ride.admin_fee + ride.driver_payout == ride.adjusted_cost == payment.amount
        tries = [one for one in books["payment_attempts"] if one.payment_id == payment.payment_id]
        accepted = [one for one in tries if one.status == "ACCEPTED"]
        assert len(tries) == payment.attempts
        assert len(accepted) == (payment.status == "ACCEPTED" and payment.amount > 0)
        taken = [one for one in charged if one.key.startswith(payment.payment_id) and one.status == "charged"]
        open_or_cash = [one for one in tries if one.status == "PENDING" or one.method == "cash"]
        assert len(taken) <= 1
        assert taken or not accepted or open_or_cash
        if ride.status == "COMPLETED":
            assert payment.status in ("ACCEPTED", "OVERDUE", "REJECTED"), payment.status


async def check_locks(database: Database) -> None:
    """Nobody is in two rides; who is bound is in a ride that has not ended, and both sides of the house agree on it."""
    under_way = [ride for ride in await _rows(database, rides) if ride.status in OPEN_RIDE]
    assert _twice(user for ride in under_way for user in (ride.driver_id, ride.passenger_id)) == []
    parties = {(ride.match_id, user) for ride in under_way for user in (ride.driver_id, ride.passenger_id)}
    assert {(row.match_id, row.user_id) for row in await _rows(database, engaged)} == parties
    bound = {(row.match_id, row.user_id) for row in await _rows(database, engagements) if not row.ended}
    assert bound == parties
    accepted = {row.match_id for row in await _rows(database, matches) if row.status == "ACCEPTED"}
    assert accepted == {ride.match_id for ride in under_way}


async def check_fleet(pods: Fleet, pairs: list[Pair]) -> None:
    """Every ride is paid and booked, nobody is bound, and the phones have heard each durable frame once, in order."""
    tally = await pods.tally(pairs)
    assert (tally.lost, tally.doubled, tally.reordered) == (0, 0, 0), tally
    for pair in pairs:
        for phone in pair.both:
            check_frames(phone.durable)
            for ride_id in pair.rides:
                for event in ("ride.pickup", "ride.started", "ride.arrived", "ride.completed"):
                    assert phone.count(event, ride_id=ride_id) == 1
        for ride_id in pair.rides:
            ride = await pair.passenger.ask("GET", f"/rides/{ride_id}")
            assert (ride["status"], ride["payment"]["status"]) == ("COMPLETED", "ACCEPTED")
        await pair.go_home()
    await check_books(pods.database)
    await check_locks(pods.database)


def check_frames(heard: Iterable[dict[str, Any]]) -> None:
    """Of what a phone heard: what must not be missed came in order, without a gap, and nothing of it twice."""
    sessions: list[list[dict[str, Any]]] = [[]]
    for frame in heard:
        if frame["event"] == "session.ready":
            sessions.append([])
        if "seq" in frame:
            sessions[-1].append(frame)
    for frames in sessions:
        numbers = [frame["seq"] for frame in frames]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        said = [
            msgspec.json.encode([frame["event"], frame["data"]]).decode()
            for frame in frames
            if not frame["event"].endswith(STATES)
        ]
        assert _twice(said) == []


async def _rows(database: Database, table: Table) -> list[Any]:
    async with database.read() as tx:
        return list((await tx.execute(select(table))).all())


def _twice(of: Iterable[str]) -> list[str]:
    return [one for one, count in Counter(of).items() if count > 1]
