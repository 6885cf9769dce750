"""The border to whoever moves the money, and a gateway that only pretends to."""

from typing import Literal, Protocol

from msgspec import Struct
from sqlalchemy import BigInteger, Column, String, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.database import Database, insert_ignore, metadata
from nebengjek.errors import Unavailable


class ChargeResult(Struct, frozen=True, kw_only=True):
    """``charged``: the money has moved. ``refused``: it has not and will not under this key; ``reason`` says why."""

    status: Literal["charged", "refused"]
    reason: str | None = None


class PaymentGateway(Protocol):
    """What a payment provider must offer."""

    async def charge(self, key: str, amount: int, method: str) -> ChargeResult:
        """Take ``amount`` rupiah, once per ``key`` however often it is called with it.

        Raises Unavailable("gateway") when there is no answer; the money may have moved nevertheless: ask ``status``.
        """
        ...

    async def status(self, key: str) -> ChargeResult | None:
        """What became of the charge; None when the gateway never heard of it. Raises Unavailable("gateway")."""
        ...


simulated_charges = Table(
    "simulated_charges",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(64)),
)
"""The books that a real gateway keeps on its own side: they outlive this process and all pods see them."""


class SimulatedGateway:
    """Charges every method but ``test_decline`` (refused) and ``test_timeout`` (charged, but the answer is lost)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def charge(self, key: str, amount: int, method: str) -> ChargeResult:
        result = ChargeResult(status="charged")
        if method == "test_decline":
            result = ChargeResult(status="refused", reason="declined")
        values = {"key": key, "amount": amount, "status": result.status, "reason": result.reason}
        async with self._database.begin() as tx:
            if not await insert_ignore(tx, simulated_charges, values):
                result = await _look_up(tx, key) or result
        if method == "test_timeout":
            raise Unavailable("gateway")
        return result

    async def status(self, key: str) -> ChargeResult | None:
        async with self._database.read() as connection:
            return await _look_up(connection, key)


async def _look_up(connection: AsyncConnection, key: str) -> ChargeResult | None:
    columns = simulated_charges.c
    found = await connection.execute(select(columns.status, columns.reason).where(columns.key == key))
    row = found.one_or_none()
    return ChargeResult(status=row.status, reason=row.reason) if row is not None else None
