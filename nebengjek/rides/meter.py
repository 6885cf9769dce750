"""How far a ride has come and what it costs: its ledger while under way, its bill at arrival."""

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from nebengjek.bus.handling import Context, Reject
from nebengjek.bus.messaging import MessageBus
from nebengjek.clock import Clock
from nebengjek.contracts.location import CloseRide, LocationAggregate, RideDistance
from nebengjek.contracts.message import uuid7
from nebengjek.contracts.rides import ArriveRide, Bill
from nebengjek.database import Database
from nebengjek.errors import Conflict, Invalid
from nebengjek.rides import events, payment_store, store
from nebengjek.rides.fares import Tariff, millimetres
from nebengjek.rides.service import only_driver
from nebengjek.rides.store import RideRow

log = structlog.stdlib.get_logger("nebengjek.rides.meter")


class Meter:
    """``arrival_wait``: seconds that the odometer may wait for points under way before it answers."""

    def __init__(
        self, bus: MessageBus, database: Database, clock: Clock, *, admin_fee_percent: float, arrival_wait: float
    ) -> None:
        self._bus = bus
        self._database = database
        self._clock = clock
        self._admin_fee_percent = admin_fee_percent
        self._arrival_wait = arrival_wait

    async def book(self, event: LocationAggregate, context: Context) -> None:
        """Write what the ride came further into its ledger: the total minus what is booked, while it is ONGOING."""
        try:
            total = millimetres(event.total_km)
        except ValueError as error:
            raise Reject(str(error)) from error
        async with self._database.begin() as tx:
            if not await self._bus.inbox.first(tx, context):
                return
            ride = await store.find(tx, event.ride_id, lock=True)
            if ride is None or ride.status != "ONGOING" or total <= ride.distance_mm:
                return
            fare = await self._book(tx, ride, event.sequence, total)
            if fare is None:
                return
            further = await store.change(tx, ride.ride_id, ["ONGOING"], said=1, distance_mm=total)
            if further is not None:
                await self._bus.outbox.add(tx, events.progress(further, fare=fare, sequence=event.sequence))

    async def _book(self, tx: AsyncConnection, ride: RideRow, sequence: int, total: int) -> int | None:
        """Book the way up to ``total`` millimetres; return the fare so far, None: the sequence is booked already.

        An entry costs what it adds to the fare, so that the costs of a ledger add up to the fare to the rupiah.
        """
        tariff = self._tariff_of(ride)
        before = tariff.fare_mm(ride.distance_mm) if ride.distance_mm else 0
        fare = tariff.fare_mm(total)
        booked = await store.book(
            tx, ride.ride_id, sequence, total - ride.distance_mm, fare - before, self._clock.now()
        )
        return fare if booked else None

    def _tariff_of(self, ride: RideRow) -> Tariff:
        return Tariff(ride.rate_per_km, ride.minimum_fare, self._admin_fee_percent)

    async def arrive(self, command: ArriveRide) -> Bill:
        """The ride is over: measure it, fix the fare, make the payment. By the driver.

        Raises Invalid (factor), NotFound, Forbidden, Conflict, Unavailable (nothing has changed then).
        """
        if not 0 < command.adjustment_factor <= 1:
            raise Invalid("adjustment_factor is more than 0 and at most 1")
        ride = await self._known(command.ride_id)
        only_driver(ride, command.user_id)
        return await self._arrive(ride, command.adjustment_factor)

    async def admin_arrive(self, ride_id: str) -> Bill:
        """An operator ends a ride whose driver's phone is gone; billed as usual. Raises as ``arrive`` does."""
        return await self._arrive(await self._known(ride_id), 1.0)

    async def _arrive(self, ride: RideRow, factor: float) -> Bill:
        if ride.status == "ONGOING":
            close = CloseRide(
                ride_id=ride.ride_id, driver_id=ride.driver_id, passenger_id=ride.passenger_id, start=ride.start
            )
            distance = await self._bus.request(close, timeout=self._arrival_wait + 5)
            if not await self._fix_bill(ride.ride_id, distance, factor):
                log.info("ride.arrived_already", ride=ride.ride_id)
        return await self._bill(ride.ride_id)

    async def _fix_bill(self, ride_id: str, distance: RideDistance, factor: float) -> bool:
        """Book the remainder, fix the fare and make the payment, all or nothing; False: somebody else has."""
        now = self._clock.now()
        async with self._database.begin() as tx:
            ride = await store.find(tx, ride_id, lock=True)
            if ride is None or ride.status != "ONGOING":
                return False
            total = max(ride.distance_mm, millimetres(distance.total_km))
            sequence = max(await store.last_sequence(tx, ride_id), distance.sequence) + 1
            fare = await self._book(tx, ride, sequence, total)
            if fare is None:
                raise ValueError(f"entry {sequence} of ride {ride_id} lies after the last one and is there")
            bill = self._tariff_of(ride).split(fare, factor)
            free = bill.adjusted_cost == 0
            payment = payment_store.PaymentRow(
                payment_id=uuid7(),
                ride_id=ride_id,
                amount=bill.adjusted_cost,
                status="ACCEPTED" if free else "PENDING",
                method=None,
                attempts=0,
                created_at=now,
                paid_at=now if free else None,
            )
            arrived = await store.change(
                tx,
                ride_id,
                ["ONGOING"],
                said=3 if free else 1,
                status="COMPLETED" if free else "ARRIVED",
                distance_mm=total,
                total_cost=bill.total_cost,
                adjustment_factor=factor,
                adjusted_cost=bill.adjusted_cost,
                admin_fee=bill.admin_fee,
                driver_payout=bill.driver_payout,
                review=distance.review,
                arrived_at=now,
                completed_at=now if free else None,
            )
            if arrived is None:
                return False
            await payment_store.insert_payment(tx, payment)
            if free:
                await self._bus.outbox.add(
                    tx,
                    events.arrived(arrived, payment, arrived.version - 2),
                    events.paid(arrived, payment, arrived.version - 1, status="ACCEPTED"),
                    events.completed(arrived, payment),
                )
            else:
                await self._bus.outbox.add(tx, events.arrived(arrived, payment, arrived.version))
        log.info("ride.arrived", ride=ride_id, total=bill.total_cost, adjusted=bill.adjusted_cost)
        return True

    async def _bill(self, ride_id: str) -> Bill:
        """Raises Conflict unless the ride has arrived."""
        async with self._database.read() as connection:
            ride = await store.find(connection, ride_id)
            payment = await payment_store.payment_of(connection, ride_id)
        if ride is None or payment is None:
            raise Conflict(f"the ride is {ride.status if ride else 'gone'}, only an ONGOING one can arrive")
        view = store.view(ride, payment)
        if (
            view.total_cost is None
            or view.adjusted_cost is None
            or view.admin_fee is None
            or view.driver_payout is None
        ):
            raise ValueError(f"ride {ride_id} has a payment and no bill")
        return Bill(
            ride_id=ride_id,
            status=view.status,
            distance_km=view.distance_km,
            total_cost=view.total_cost,
            adjusted_cost=view.adjusted_cost,
            admin_fee=view.admin_fee,
            driver_payout=view.driver_payout,
            payment_id=payment.payment_id,
        )

    async def _known(self, ride_id: str) -> RideRow:
        """Raises NotFound."""
        async with self._database.read() as connection:
            return await store.known(connection, ride_id)
