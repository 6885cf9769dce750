"""The composition root: settings → bus → stores → modules → Litestar. It knows all, and is known by none.

Over 300 lines because this is where everything is handed its values, and nowhere else.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar, Request
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from msgspec import structs
from prometheus_client import CollectorRegistry

from nebengjek import schema
from nebengjek.admin import admin_routes
from nebengjek.asyncapi import asyncapi_route, document
from nebengjek.bus.interface import Broker
from nebengjek.bus.memory.broker import MemoryBroker
from nebengjek.bus.memory.server import MemoryServer
from nebengjek.bus.messaging import DrainReport, MessageBus
from nebengjek.bus.observing import Spans
from nebengjek.bus.payloads import Payloads
from nebengjek.bus.specs import StreamSpec
from nebengjek.clock import Clock, SystemClock
from nebengjek.contracts.message import uuid7
from nebengjek.database import Database
from nebengjek.errors import Misconfigured, Unauthenticated, Unavailable
from nebengjek.faststate import FastState, MemoryFastState, RedisFastState, connect_redis
from nebengjek.location.module import location
from nebengjek.location.odometer import Rules
from nebengjek.location.redis_store import RedisPoints
from nebengjek.location.store import MemoryPoints, Points
from nebengjek.match.module import match
from nebengjek.match.pool import MemoryPool, Pool
from nebengjek.match.redis_pool import RedisPool
from nebengjek.module import Module, SmsSender, Sweep
from nebengjek.openapi import openapi
from nebengjek.plugins import load_plugins
from nebengjek.pods import Pods
from nebengjek.realtime.delivery import Delivery
from nebengjek.realtime.limits import Limits, Rate
from nebengjek.realtime.mailbox import MemoryMailbox
from nebengjek.realtime.presence import MemoryPresence, Presence
from nebengjek.realtime.redis_mailbox import RedisMailbox
from nebengjek.realtime.redis_presence import RedisPresence
from nebengjek.realtime.relay import Relay
from nebengjek.rides.fares import Tariff
from nebengjek.rides.module import rides
from nebengjek.rides.payments import SimulatedGateway
from nebengjek.rides.store import count_open
from nebengjek.settings import Settings
from nebengjek.streams import check_capacity, streams
from nebengjek.tasks import cancelled
from nebengjek.telemetry import Metrics, metrics_route, setup_tracing
from nebengjek.tokens import Identity, Tokens
from nebengjek.users.accounts import Accounts
from nebengjek.users.module import users
from nebengjek.users.otp import ConsoleSms, Otp
from nebengjek.users.service import UsersService
from nebengjek.users.websocket import PhoneSocket
from nebengjek.users.websocket import Settings as SocketSettings
from nebengjek.web import (
    Check,
    HealthReport,
    JsonRequest,
    MsgspecLitestar,
    admin_guard,
    begin_trace,
    exception_handlers,
    health_routes,
    log_fault,
    user_guard,
)

MODULES = ("users", "location", "match", "rides")
HEARTBEAT_SECONDS = 5.0

log = structlog.stdlib.get_logger("nebengjek.app")


class App:
    """Everything that runs in this process. ``start`` and ``stop`` are Litestar's lifespan; tests call them too."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        broker: Broker | None = None,
        running: Sequence[str] | None = None,
        sms: SmsSender | None = None,
        sweeping: bool = True,
    ) -> None:
        """``running``: the modules of this pod, default all. ``sweeping=False``: the caller calls ``sweep``."""
        self.settings = settings
        self.clock = clock or SystemClock()
        self.pod_id = settings.nats.pod_id or f"pod-{uuid7()[-12:]}"
        self.metrics = Metrics(CollectorRegistry(), pod_id=self.pod_id)
        self.metrics.before_scrape(self._measure)
        self._spans = _spans(settings, self.pod_id)
        self.database = Database(settings.database.url, pool_size=settings.database.pool_size)
        self.redis = connect_redis(settings.redis.url) if settings.redis.url else None
        self.broker = broker or _broker(settings, self.pod_id)
        self._sweeping = sweeping
        self._sweepers: list[asyncio.Task[None]] = []
        self._started = False
        self.drained: DrainReport | None = None
        payloads = Payloads(compress_above=settings.nats.compress_above, keys=settings.nats.sealing_keys)
        self.bus = MessageBus(
            self.broker,
            streams(settings.nats.replicas),
            self.database.begin,
            pod_id=self.pod_id,
            clock=self.clock,
            observer=self.metrics,
            spans=self._spans,
            audit=settings.log.audit,
            ack_wait=settings.nats.ack_wait,
            lag_alarm=settings.nats.lag_alarm,
            payloads=payloads,
        )
        self.database.on_commit(self.bus.outbox.committed)
        self.state = self._fast_state()
        self.limits = self._limits()
        self.delivery = self._delivery(payloads)
        self.tokens = Tokens(settings.auth.jwt_secret, lifetime=settings.auth.token_hours * 3600, clock=self.clock)
        self._sms = sms or _sms(settings)
        plugins = self._plugins()
        self.modules = [*self._modules(_codes_go_to(plugins) or self._sms), *plugins]
        self.running = [module for module in self.modules if running is None or module.name in running]
        _check_running(running, self.modules)
        self._histories = schema.histories(self.modules)
        self.streams = [*streams(settings.nats.replicas), *_with_replicas(self.modules, settings.nats.replicas)]
        if broker is None and settings.nats.is_real:
            nats = settings.nats
            check_capacity(self.streams, max_memory=nats.max_memory, max_storage=nats.max_storage)
        self.bus.keep(self.streams)
        for module in self.running:
            self._socket.add(module.commands)
        for module in self.modules:
            self.bus.wire(
                module.name,
                module.hears,
                module.watches,
                module.answers,
                says=module.says,
                listens=module.listens,
                running=module in self.running,
            )
        self.pods = Pods(
            self.bus,
            self.clock,
            modules=[module.name for module in self.running],
            embedded=self.embedded(),
            sockets=lambda: self.delivery.sockets,
        )
        self.litestar = self._litestar()

    # -- parts

    def embedded(self) -> list[str]:
        """The parts that live in this process and end with it."""
        parts = {"bus": self.broker.durable, "fast state": self.redis is not None}
        parts["database"] = not self.database.is_sqlite
        return [name for name, real in parts.items() if not real]

    def parts(self) -> list[tuple[str, str, str]]:
        """(part, ``embedded`` or ``real``, where), for people."""
        embedded = self.embedded()
        where = {"bus": self.broker.where, "fast state": self.state.where, "database": self.database.where}
        return [(name, "embedded" if name in embedded else "real", place) for name, place in where.items()]

    def _fast_state(self) -> FastState:
        if self.redis is None:
            return MemoryFastState(self.clock)
        return RedisFastState(self.redis)

    def _delivery(self, payloads: Payloads) -> Delivery:
        web = self.settings.web
        options: dict[str, Any] = {"patience": web.stall_timeout, "sockets_per_user": web.sockets_per_user}
        options |= {"cut_off": self.metrics.counter("phones_cut_off").inc}
        if self.redis is None:
            mailbox, presence = MemoryMailbox(self.clock), MemoryPresence(self.clock)
            return Delivery(mailbox, presence, self.clock, **options)
        seen = RedisPresence(self.redis, self.clock, pod_id=self.pod_id)
        relay = Relay(self.broker, seen, pod_id=self.pod_id, payloads=payloads)
        mail = RedisMailbox(self.redis, self.clock)
        return Delivery(mail, seen, self.clock, relay, **options)

    def _presence(self, kind: str) -> Presence:
        """Which pod holds what, of another kind than phones."""
        if self.redis is None:
            return MemoryPresence(self.clock)
        return RedisPresence(self.redis, self.clock, pod_id=self.pod_id, kind=kind)

    def _limits(self) -> Limits:
        web = self.settings.web
        frames = Rate(per_second=web.frames_per_second, burst=web.frame_burst)
        commands = Rate(per_second=web.commands_per_second, burst=web.command_burst)
        return Limits(self.state, frames=frames, commands=commands)

    def _points(self) -> Points:
        if self.redis is None:
            return MemoryPoints(self.clock)
        return RedisPoints(self.redis)

    def _pool(self) -> Pool:
        if self.redis is None:
            return MemoryPool()
        return RedisPool(self.redis)

    def _modules(self, sms: SmsSender) -> list[Module]:
        settings = self.settings
        tariff = Tariff(settings.billing.rate_per_km, settings.billing.minimum_fare, settings.billing.admin_fee_percent)
        return [
            self._users(sms),
            location(
                self.bus,
                self.database,
                self._points(),
                self.clock,
                Rules(
                    min_move_m=settings.rides.min_move_m,
                    max_speed_kmh=settings.location.max_speed_kmh,
                    silence=settings.rides.silence,
                    review_difference=settings.rides.review_difference,
                ),
                max_clock_skew=settings.location.max_clock_skew,
                ttl=settings.location.ttl,
                ledger_step_km=settings.rides.ledger_step_km,
                arrival_wait=settings.rides.arrival_wait,
                path_ttl=settings.location.path_ttl,
                admin_guard=admin_guard(settings.admin.api_key),
            ),
            match(
                self.bus,
                self.database,
                self._pool(),
                self.clock,
                tariff.fare,
                lambda outcome: self.metrics.counter("matches", outcome=outcome).inc(),
                radius_km=settings.match.radius_km,
                max_candidates=settings.match.max_candidates,
                offers_per_driver=settings.match.offers_per_driver,
                offer_ttl=settings.match.offer_ttl,
                search_ttl=settings.match.search_ttl,
                seen_ttl=settings.location.ttl,
                open_within=settings.match.open_within,
                open_check=settings.match.open_check,
            ),
            rides(
                self.bus,
                self.database,
                SimulatedGateway(self.database),
                self.clock,
                rate_per_km=settings.billing.rate_per_km,
                minimum_fare=settings.billing.minimum_fare,
                admin_fee_percent=settings.billing.admin_fee_percent,
                start_radius_m=settings.rides.start_radius_m,
                pickup_ttl=settings.rides.pickup_ttl,
                payment_ttl=settings.rides.payment_ttl,
                charge_timeout=settings.rides.charge_timeout,
                settle_after=settings.rides.settle_after,
                arrival_wait=settings.rides.arrival_wait,
                admin_guard=admin_guard(settings.admin.api_key),
            ),
        ]

    def _plugins(self) -> list[Module]:
        parts = {
            "bus": self.bus,
            "database": self.database,
            "clock": self.clock,
            "delivery": self.delivery,
            "state": self.state,
            "pod_id": self.pod_id,
            "presence": self._presence,
            "sms": self._sms,
            "otp_ttl": self.settings.auth.otp_ttl,
            "in_production": self.settings.profile == "production",
            "registry": self.metrics.registry,
            "admin_guard": admin_guard(self.settings.admin.api_key),
        }
        return load_plugins(self.settings.plugins, self.settings.plugin, parts, taken=MODULES)

    def _users(self, sms: SmsSender) -> Module:
        auth = self.settings.auth
        accounts = Accounts(
            self.bus,
            self.database,
            self.state,
            self.tokens,
            self.clock,
            refresh_days=auth.refresh_days,
            token_hours=auth.token_hours,
        )
        otp = Otp(
            self.state,
            sms,
            auth.jwt_secret,
            lifetime=auth.otp_ttl,
            tries=auth.otp_tries,
            requests=auth.otp_requests,
            window=auth.otp_window,
            per_address=auth.otp_per_address,
        )
        service = UsersService(
            self.bus, self.database, self.delivery, self.clock, grace=self.settings.location.offline_grace
        )
        web = self.settings.web
        self._socket = socket = PhoneSocket(
            self.bus,
            service,
            self.delivery,
            self.state,
            self.limits,
            self.authenticate,
            SocketSettings(max_frame=web.max_frame, allowed_origins=web.allowed_origins),
        )
        return users(
            self.bus,
            accounts,
            otp,
            service,
            socket,
            self.delivery,
            otp_debug=auth.otp_debug,
            allowed_prefixes=auth.allowed_prefixes,
        )

    async def authenticate(self, token: str) -> Identity:
        """The identity of an access token. Raises Unauthenticated, also when its session has ended."""
        identity = self.tokens.read(token)
        if await self.state.get(f"session:ended:{identity.session_id}") is not None:
            raise Unauthenticated("the session has ended")
        return identity

    # -- web

    def _litestar(self) -> Litestar:
        async def provide_user(request: Request[Any, Any, Any]) -> Identity:
            user: Identity = request.user
            return user

        origins = list(self.settings.web.allowed_origins)
        handlers = [route for module in self.running for route in module.routes]
        return MsgspecLitestar(
            [*handlers, *health_routes(self.pod_id, self.examine), *self._operators()],
            dependencies={"user": Provide(provide_user)},
            guards=[user_guard(self.authenticate, self.limits.count)],
            before_request=begin_trace,
            request_class=JsonRequest,
            exception_handlers=exception_handlers,
            after_exception=[log_fault],
            lifespan=[self._lifespan],
            cors_config=CORSConfig(allow_origins=origins) if origins else None,
            openapi_config=openapi(),
            request_max_body_size=self.settings.web.max_frame,
            logging_config=None,
        )

    def _operators(self) -> list[Any]:
        guard = admin_guard(self.settings.admin.api_key)
        return [
            metrics_route(self.metrics),
            asyncapi_route(lambda: document(self.modules, ack_wait=self.settings.nats.ack_wait)),
            admin_routes(self.bus, self.pods.known, guard),
        ]

    async def _measure(self) -> None:
        """What is counted when somebody looks, not when it happens."""
        self.metrics.observe_health(await self.bus.health())
        self.metrics.gauge("sockets").set(self.delivery.sockets)
        self.metrics.gauge("users_connected").set(self.delivery.users)
        slow, frames = self.delivery.waiting()
        self.metrics.gauge("sockets_waiting").set(slow)
        self.metrics.gauge("frames_waiting").set(frames)
        self.metrics.gauge("greetings_waiting").set(self._socket.waiting)
        self.metrics.observe_pods({beat.pod_id: beat.active_connections for beat in self.pods.known()})
        async with self.database.read() as tx:
            rides_by_state = await count_open(tx)
        for state, count in rides_by_state.items():
            self.metrics.gauge("rides", state=state).set(count)

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        # Our own server has started it before: uvicorn would answer a refusal with a traceback.
        if not self._started:
            await self.start()
        try:
            yield
        finally:
            await self.stop()

    # -- life

    async def start(self) -> None:
        """Stores, schema, bus, sweeps. A bus that is away is waited for behind; ``ready`` is 503 until then.

        Raises Unavailable when a store does not answer, Misconfigured when it refuses us, when the schema is old and
        migrating is not ours to do, or when the bus can never work; the message names what was tried.
        """
        try:
            await self._start()
        except BaseException:
            # Nothing was heard yet: there is nothing to drain.
            await self.broker.close()
            await self._close()
            raise

    async def _start(self) -> None:
        await self._prepare_schema()
        await self._reach_fast_state()
        if self.broker.durable:
            await self.broker.connect()
        for module in self.running:
            if module.start is not None:
                await module.start()
        await self.bus.start()
        self._started = True
        if self._sweeping:
            await self.pods.beat()
            for sweep in self.sweeps():
                self._sweepers.append(asyncio.create_task(self._sweep_for_ever(sweep)))

    async def _reach_fast_state(self) -> None:
        try:
            await self.state.ping()
        except Unavailable as error:
            reason = str(error.__cause__)
            raise Unavailable("redis", f"redis.url: {self.state.where} does not answer ({reason})") from error

    async def _prepare_schema(self) -> None:
        for history in self._histories:
            if self.settings.profile != "production" or self.database.is_sqlite:
                await schema.upgrade(self.database, history)
                continue
            found = await schema.revision(self.database, history)
            if found != history.head:
                what = f"the schema of {history.name}" if history.name else "the schema"
                raise Misconfigured(
                    f"database.url: {what} is {found or 'empty'}, expected {history.head}; run: nebengjek db upgrade"
                )

    def sweeps(self) -> list[Sweep]:
        """What every pod does each few seconds."""
        return [
            *(sweep for module in self.running for sweep in module.sweeps),
            Sweep(seconds=HEARTBEAT_SECONDS, run=self.pods.beat),
            Sweep(seconds=3600.0, run=self._forget_handled),
        ]

    async def _forget_handled(self) -> None:
        async with self.database.begin() as tx:
            await self.bus.inbox.forget_old(tx)

    def closing(self) -> None:
        """The server takes no more requests: answers that would go on for ever end now."""
        for module in self.running:
            if module.closing is not None:
                module.closing()

    async def sweep(self) -> None:
        """Every sweep once, now: for whoever moves the clock."""
        for sweep in self.sweeps():
            await sweep.run()

    async def _sweep_for_ever(self, sweep: Sweep) -> None:
        name = getattr(sweep.run, "__qualname__", str(sweep.run))
        while True:
            await asyncio.sleep(sweep.seconds)
            try:
                await sweep.run()
            except Exception as error:
                self.metrics.counter("sweep_failures", sweep=name).inc()
                log.warning("sweep.failed", sweep=name, exc_info=error)

    async def stop(self) -> None:
        """Let everything end that has begun; what is not done is done by the next start."""
        await cancelled(*self._sweepers)
        self._sweepers.clear()
        self.drained = await self.bus.drain(self.settings.nats.drain_timeout)
        log.info("bus.drained", finished=self.drained.finished, abandoned=self.drained.abandoned)
        await self._close()

    async def _close(self) -> None:
        await self.delivery.stop()
        if self._spans is not None:
            self._spans.close()
        await self.state.close()
        if self.redis is not None:
            await self.redis.aclose()
        await self.database.close()

    # -- health

    async def examine(self) -> HealthReport:
        """Every part of this process, and the bus in detail."""
        health = await self.bus.health()
        checks = [
            await _check("database", self.database.where, self.database.ping),
            await _check("fast state", self.state.where, self.state.ping),
            Check(name="bus", up=health.problem is None, where=health.where, reason=health.problem),
        ]
        # With the bus away no consumer moves, and that is not what is the matter.
        for consumer in health.consumers if health.problem is None else ():
            if not consumer.moving:
                reason = f"{consumer.consumer}: " + (
                    f"waits for {consumer.blocked_by}"
                    if consumer.blocked_by
                    else f"last pull {consumer.last_pull_age:.0f} s ago"
                )
                checks.append(Check(name="consumers", up=False, where=consumer.stream, reason=reason))
                break
        if conflict := self.pods.conflict():
            checks.append(Check(name="pods", up=False, where=self.pod_id, reason=conflict))
        # Every pod of the module sees the same lag: to take one out would make it longer.
        if lagging := [consumer for consumer in health.consumers if consumer.lagging]:
            worst = max(lagging, key=lambda consumer: consumer.lag)
            reason = f"{worst.consumer}: {worst.lag:,} messages are not delivered yet"
            if worst.paused_until is not None:
                reason += f", it is paused until {worst.paused_until:%Y-%m-%d %H:%M:%S} UTC"
            checks.append(Check(name="lag", up=False, where=worst.stream, reason=reason, alarm=True))
        down = any(not check.up and not check.alarm for check in checks)
        return HealthReport(
            status="down" if down else "up" if all(check.up for check in checks) else "degraded",
            pod_id=self.pod_id,
            checks=checks,
            details={
                "bus": health,
                "sockets": self.delivery.sockets,
                "pods": {beat.pod_id: beat.active_connections for beat in self.pods.known()},
            },
        )


def _check_running(running: Sequence[str] | None, modules: Sequence[Module]) -> None:
    """Raises Misconfigured for a name that no module has."""
    names = [module.name for module in modules]
    if unknown := sorted({*(running or ())} - {*names}):
        raise Misconfigured(f"--modules {', '.join(unknown)}: expected some of {', '.join(names)}")


def _codes_go_to(plugins: Sequence[Module]) -> SmsSender | None:
    """Raises Misconfigured where two plugins want to carry codes."""
    queues = {module.name: module.sms for module in plugins if module.sms is not None}
    if len(queues) > 1:
        raise Misconfigured(f"plugins: {', '.join(sorted(queues))} each carry one-time codes, expected one of them")
    return next((queue.sender for queue in queues.values()), None)


def _with_replicas(modules: Sequence[Module], replicas: int) -> list[StreamSpec]:
    return [structs.replace(spec, replicas=replicas) for module in modules for spec in module.streams]


def _broker(settings: Settings, pod_id: str) -> Broker:
    if not settings.nats.is_real:
        return MemoryBroker(MemoryServer())
    nats = settings.nats
    # nats-py is not imported where no NATS is used: it costs a fifth of a second of the start.
    from nebengjek.bus.jetstream.broker import JetStreamBroker

    return JetStreamBroker.from_settings(nats, name=pod_id)


def _sms(settings: Settings) -> SmsSender:
    sms = settings.sms
    if sms.url is None:
        return ConsoleSms()
    # httpx costs a sixth of a second of the start, which a laptop does not need.
    from nebengjek.users.sms import HttpSms

    return HttpSms(sms.url, token=sms.token, sender=sms.sender, timeout=sms.timeout)


def _spans(settings: Settings, pod_id: str) -> Spans | None:
    telemetry = settings.telemetry
    if telemetry.otlp_endpoint is None:
        return None
    return setup_tracing(telemetry.otlp_endpoint, service_name=telemetry.service_name, pod_id=pod_id)


async def _check(name: str, where: str, ping: Callable[[], Any]) -> Check:
    try:
        await ping()
    except Unavailable as error:
        return Check(name=name, up=False, where=where, reason=error.message)
    return Check(name=name, up=True, where=where)
