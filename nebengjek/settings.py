"""Every setting with its default: what suits a laptop, unless a TOML profile or the environment says otherwise.

Later wins: the defaults below, those of the profile (``PROFILE_DEFAULTS``), the TOML file that NEBENGJEK_SETTINGS
names, the reference names (``NATS_URL`` …), ``NEBENGJEK__SECTION__KEY``. Times are seconds unless a name says hours
or days. Over 300 lines because the values and what refuses to start belong on one page.
"""

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from msgspec import Meta, field

from nebengjek.contracts.message import InvalidSubject, token
from nebengjek.errors import Misconfigured
from nebengjek.profile import Given, Section, Source, hints

DEVELOPMENT_SECRET = "development-only-jwt-secret-change-me-before-anybody-else-logs-in"
DEVELOPMENT_ADMIN_KEY = "development-only-admin-key-change-me"
DEVELOPMENT_PASSWORD = "development-only"
"""Of the servers in docker-compose.yml, unless .env says otherwise."""
DEFAULT_DATABASE = "sqlite:///nebengjek.sqlite3"
MASK = "********"

Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]
SecretOrNone = Annotated[str | None, Meta(extra={"secret": True})]
Url = Annotated[str | None, Meta(extra={"url": True})]
Size = Annotated[Annotated[int, Meta(ge=0)] | None, Meta(extra={"size": True})]
Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Profile = Literal["development", "test", "production"]


class Auth(Section, frozen=True, kw_only=True):
    """Who may come in. ``otp_per_address``: OTP requests per address and minute, 0 = any number."""

    jwt_secret: Secret = DEVELOPMENT_SECRET
    token_hours: Annotated[float, Meta(gt=0, le=24 * 31)] = 24
    refresh_days: Annotated[float, Meta(gt=0, le=366)] = 30
    otp_debug: bool = False
    """Return the code in the answer to whoever asked for it; never in production."""
    otp_ttl: Seconds = 300
    otp_tries: Count = 5
    otp_requests: Count = 3
    otp_window: Seconds = 900
    """``otp_requests`` per number in so many seconds."""
    otp_per_address: Annotated[int, Meta(ge=0)] = 10
    allowed_prefixes: tuple[Annotated[str, Meta(pattern=r"^8\d{1,5}$")], ...] = ()
    """Of a national number without 0 (``811``); empty = every Indonesian mobile number."""


class Sms(Section, frozen=True, kw_only=True):
    """The HTTP gateway that carries OTPs; without a url they go to the console."""

    url: Url = None
    token: SecretOrNone = None
    sender: str = "NebengJek"
    timeout: Seconds = 5


class LocationRules(Section, frozen=True, kw_only=True):
    max_clock_skew: Seconds = 60
    max_speed_kmh: Annotated[float, Meta(gt=0, le=2000)] = 200
    ttl: Seconds = 1800
    offline_grace: Seconds = 30
    path_ttl: Seconds = 86400


class MatchRules(Section, frozen=True, kw_only=True):
    radius_km: Annotated[float, Meta(gt=0, le=50)] = 5.0
    max_candidates: Count = 5
    offers_per_driver: Count = 3
    offer_ttl: Seconds = 30
    search_ttl: Seconds = 600
    open_within: Seconds = 120
    """An accepted match becomes a ride within this time or never."""
    open_check: Seconds = 30
    """So long after that an accepted match without a ride is given up."""


class RideRules(Section, frozen=True, kw_only=True):
    start_radius_m: Annotated[float, Meta(gt=0, le=10_000)] = 100
    min_move_m: Annotated[float, Meta(ge=0, le=1000)] = 10
    ledger_step_km: Annotated[float, Meta(gt=0, le=100)] = 1.0
    arrival_wait: Seconds = 5
    pickup_ttl: Seconds = 7200
    payment_ttl: Seconds = 900
    charge_timeout: Annotated[float, Meta(gt=0, le=14)] = 5
    """So long the payment gateway may take; a phone's command waits 15 s for all of it."""
    settle_after: Seconds = 10
    """So old is a payment without an answer when the gateway is asked what became of it; more than the timeout."""
    silence: Seconds = 60
    """After so long without a point of the driver the passenger's path fills the gap."""
    review_difference: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Paths of the two phones that differ by more than this share are shown to an operator."""


class Billing(Section, frozen=True, kw_only=True):
    """Integer rupiah; the fee in percent."""

    rate_per_km: Annotated[int, Meta(ge=0, le=10_000_000)] = 3000
    minimum_fare: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    admin_fee_percent: Annotated[float, Meta(ge=0, le=100)] = 5


class Nats(Section, frozen=True, kw_only=True):
    """``url`` and ``enabled``: JetStream; else a bus in this process. Sizes in bytes or like ``1GB``."""

    url: Url = None
    enabled: bool = True
    user: str | None = None
    password: SecretOrNone = None
    token: SecretOrNone = None
    credentials: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    allow_plain: bool = False
    connect_timeout: Seconds = 5
    drain_timeout: Seconds = 30
    ack_wait: Seconds = 30
    """Until what a pod had in hand when it died comes to another one."""
    lag_alarm: Annotated[int, Meta(ge=0, le=2**53)] = 10_000
    """Messages that a consumer has not been delivered yet, above which health says so; 0 = never."""
    cluster_id: str | None = None
    client_id: str | None = None
    domain: str | None = None
    inbox_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")] | None = None
    max_memory: Size = None
    max_storage: Size = None
    compress_above: Annotated[int, Meta(ge=0)] = 0
    """Bytes of an event's body from which on it is compressed; 0 = never."""
    event_keys: SecretOrNone = None
    """64 hexadecimal digits, several separated by commas: the first seals events about people, all open them."""
    replicas: Literal[1, 3, 5] = 1

    @property
    def is_real(self) -> bool:
        return self.enabled and self.url is not None

    @property
    def sealing_keys(self) -> list[bytes]:
        return [bytes.fromhex(key) for key in self.event_keys.split(",")] if self.event_keys else []

    @property
    def pod_id(self) -> str | None:
        """``client_id`` behind ``cluster_id``: the connection's name and the pod's; None = a new one each start."""
        if self.client_id is None:
            return None
        return f"{self.cluster_id}-{self.client_id}" if self.cluster_id else self.client_id


class Redis(Section, frozen=True, kw_only=True):
    url: Url = None

    @property
    def is_real(self) -> bool:
        return self.url is not None


class DatabaseSettings(Section, frozen=True, kw_only=True):
    url: Annotated[str, Meta(min_length=1, extra={"url": True})] = DEFAULT_DATABASE
    pool_size: Annotated[int, Meta(ge=1, le=500)] = 10

    @property
    def is_real(self) -> bool:
        return not self.url.startswith("sqlite")

    @property
    def file(self) -> Path | None:
        """The SQLite file; None on a server and for ``:memory:``."""
        name = self.url.partition(":///")[2].partition("?")[0]
        return None if self.is_real or name in ("", ":memory:") else Path(name)


class Web(Section, frozen=True, kw_only=True):
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """0 = any free one."""
    frames_per_second: Annotated[float, Meta(gt=0, le=100_000)] = 20
    """Points of a user, on all his sockets; ``frame_burst`` are saved up."""
    frame_burst: Count = 40
    commands_per_second: Annotated[float, Meta(gt=0, le=100_000)] = 2
    """Commands of a user, of each kind."""
    command_burst: Count = 20
    max_frame: Annotated[int, Meta(ge=256, le=1024 * 1024)] = 65536
    ping_interval: Annotated[float, Meta(gt=0, le=3600)] = 20
    """Between two pings; a phone that answers none of two is dead when the third is due."""
    sockets_per_user: Count = 10
    """On one pod; of more the oldest is closed."""
    stall_timeout: Annotated[float, Meta(gt=0, le=3600)] = 20
    """So long a phone may take nothing of what is sent to it."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API (CORS) and open a socket; ``*`` = any."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (``10.0.0.0/8``) of load balancers whose X-Forwarded-For names the phone."""


class Log(Section, frozen=True, kw_only=True):
    """``auto``: pretty in a terminal, else JSON. ``audit``: name each message published and settled, at debug level."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "pretty"] = "auto"
    audit: bool = False


class Admin(Section, frozen=True, kw_only=True):
    api_key: Secret = DEVELOPMENT_ADMIN_KEY


class Telemetry(Section, frozen=True, kw_only=True):
    """``otlp_endpoint``: traces go there over OTLP/HTTP; none = no tracing SDK is loaded."""

    otlp_endpoint: Url = None
    service_name: Annotated[str, Meta(min_length=1)] = "nebengjek"


class Settings(Section, frozen=True, kw_only=True):
    """All. ``plugins``: dotted paths (``package.chat:chat``); ``plugin.<name>``: that plugin's keyword arguments."""

    profile: Profile = "development"
    auth: Auth = field(default_factory=Auth)
    sms: Sms = field(default_factory=Sms)
    location: LocationRules = field(default_factory=LocationRules)
    match: MatchRules = field(default_factory=MatchRules)
    rides: RideRules = field(default_factory=RideRules)
    billing: Billing = field(default_factory=Billing)
    nats: Nats = field(default_factory=Nats)
    redis: Redis = field(default_factory=Redis)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    web: Web = field(default_factory=Web)
    log: Log = field(default_factory=Log)
    admin: Admin = field(default_factory=Admin)
    telemetry: Telemetry = field(default_factory=Telemetry)
    plugins: tuple[str, ...] = ()
    plugin: dict[str, dict[str, Any]] = field(default_factory=dict)


_FOR_PEOPLE_WHO_TRY: dict[str, Any] = {"auth.otp_debug": True, "auth.otp_per_address": 0}
PROFILE_DEFAULTS: dict[str, dict[str, Any]] = {
    "development": _FOR_PEOPLE_WHO_TRY,
    "test": _FOR_PEOPLE_WHO_TRY,
    "production": {},
}
REFERENCE_NAMES = {
    "NATS_URL": "nats.url",
    "NATS_CLUSTER_ID": "nats.cluster_id",
    "NATS_CLIENT_ID": "nats.client_id",
    "JETSTREAM_ENABLED": "nats.enabled",
    "JETSTREAM_DOMAIN": "nats.domain",
    "JETSTREAM_MAX_MEMORY": "nats.max_memory",
    "JETSTREAM_MAX_STORAGE": "nats.max_storage",
    "REDIS_URL": "redis.url",
    "DATABASE_URL": "database.url",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "telemetry.otlp_endpoint",
}
"""Names that other deployments use already; an empty value means not set."""
FILE_VARIABLE = "NEBENGJEK_SETTINGS"


_SOURCE = Source(Settings, prefix="NEBENGJEK__", names=REFERENCE_NAMES, open_table="plugin")
KEYS = _SOURCE.keys
"""Dotted name of every setting and its type; ``plugin.<name>.<argument>`` comes on top."""


def given(path: Path | None = None, env: Mapping[str, str] | None = None) -> dict[str, Given]:
    """What was written where, by dotted key, the winner only. Raises Misconfigured for unknown keys."""
    env = env or {}
    if path is None and env.get(FILE_VARIABLE):
        path = Path(env[FILE_VARIABLE])
    found = _SOURCE.read(path, env)
    profile = found["profile"].value if "profile" in found else "development"
    for key, value in PROFILE_DEFAULTS.get(str(profile), {}).items():
        found.setdefault(key, Given(value, f"profile {profile}"))
    return found


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """The settings of a process. ``path`` goes before NEBENGJEK_SETTINGS; ``env``: usually ``os.environ``.

    Raises Misconfigured, one line for each key that is unknown, has a bad value or must not be used in the profile.
    """
    settings: Settings = _SOURCE.build(given(path, env))
    problems = list(_problems(settings))
    if problems:
        raise Misconfigured("\n".join(problems))
    return settings


# -- what refuses to start ---------------------------------------------------------------------------------

_SCHEMES = {
    "nats.url": ("nats", "tls", "ws", "wss"),
    "redis.url": ("redis", "rediss", "unix"),
    "database.url": ("sqlite", "postgresql"),
    "telemetry.otlp_endpoint": ("http", "https"),
    "sms.url": ("http", "https"),
}


_EVENT_KEYS = re.compile(r"[0-9a-fA-F]{64}(,[0-9a-fA-F]{64})*")


def _problems(settings: Settings) -> Iterator[str]:
    yield from _bad_urls(settings)
    for proxy in settings.web.trusted_proxies:
        try:
            ip_network(proxy)
        except ValueError:
            yield f"web.trusted_proxies: {proxy!r} is no address or network such as 10.0.0.0/8"
    yield from _bad_nats(settings.nats)
    if settings.nats.event_keys and not _EVENT_KEYS.fullmatch(settings.nats.event_keys):
        yield "nats.event_keys: expected 64 hexadecimal digits each, separated by commas"
    rides = settings.rides
    if rides.settle_after <= rides.charge_timeout:
        yield (
            f"rides.settle_after = {rides.settle_after:g}: expected more than rides.charge_timeout "
            f"({rides.charge_timeout:g}), or a charge would be given up that is still under way"
        )
    auth = settings.auth
    if settings.profile != "development" and len(auth.jwt_secret.encode()) < 32:
        yield f"auth.jwt_secret has {len(auth.jwt_secret.encode())} bytes: expected at least 32 outside development"
    if settings.profile == "production":
        yield from _unfit_for_production(settings)


def _bad_urls(settings: Settings) -> Iterator[str]:
    for key, schemes in _SCHEMES.items():
        section, _, name = key.partition(".")
        url: str | None = getattr(getattr(settings, section), name)
        for part in (url or "").split(",") if key == "nats.url" else [url or ""]:
            scheme = part.partition(":")[0].partition("+")[0]
            if part and (scheme not in schemes or "://" not in part):
                yield f"{key}: expected {' or '.join(f'{known}://…' for known in schemes)}"


def _bad_nats(nats: Nats) -> Iterator[str]:
    if (nats.user is None) != (nats.password is None):
        yield "nats.user and nats.password: expected both or neither"
    if (nats.tls_cert is None) != (nats.tls_key is None):
        yield "nats.tls_cert and nats.tls_key: expected both or neither"
    for key in ("credentials", "tls_ca", "tls_cert", "tls_key"):
        name: str | None = getattr(nats, key)
        if name is not None and not Path(name).is_file():
            yield f"nats.{key} = {name!r}: there is no such file"
    try:
        token(nats.pod_id or "pod")
        token(nats.domain or "domain")
    except InvalidSubject:
        yield "nats.client_id, nats.cluster_id, nats.domain: expected a word without dots, spaces and wildcards"


def _unfit_for_production(settings: Settings) -> Iterator[str]:
    auth, nats = settings.auth, settings.nats
    if auth.jwt_secret == DEVELOPMENT_SECRET:
        yield "auth.jwt_secret is the one that everybody knows: expected your own, at least 32 bytes, in production"
    if settings.admin.api_key == DEVELOPMENT_ADMIN_KEY or len(settings.admin.api_key) < 16:
        yield "admin.api_key: expected your own, at least 16 characters, in production"
    if auth.otp_debug:
        yield "auth.otp_debug = true: production would hand the code to whoever asks, expected false"
    if auth.otp_per_address == 0:
        yield "auth.otp_per_address = 0: expected at least 1 in production"
    if settings.sms.url is None:
        yield "sms.url is not set: expected your SMS gateway in production, codes never go to its logs"
    known = {"nats.password": nats.password, "redis.url": settings.redis.url, "database.url": settings.database.url}
    for key, value in known.items():
        if value == DEVELOPMENT_PASSWORD or f":{DEVELOPMENT_PASSWORD}@" in (value or ""):
            yield f"{key} has the password that everybody knows: expected your own in production"
    if not nats.is_real:
        return
    if not settings.database.is_real:
        yield "database.url is SQLite: production with NATS means several pods, expected postgresql://…"
    if not settings.redis.is_real:
        yield "redis.url is not set: production with NATS means several pods, expected redis://… or rediss://…"
    if not nats.event_keys:
        yield "nats.event_keys is not set: production with NATS seals events about people, expected 64 hex digits"
    servers = [urlsplit(part) for part in (nats.url or "").split(",")]
    in_url = all(server.username for server in servers)
    if not (in_url or nats.user or nats.token or nats.credentials or nats.tls_cert):
        yield "nats: production expects authentication: nats.user and password, token, credentials or tls_cert"
    plain = [server.hostname or "" for server in servers if server.scheme not in ("tls", "wss")]
    beyond = [host for host in plain if not _is_loopback(host)]
    if beyond and not nats.tls_ca and not nats.tls_cert and not nats.allow_plain:
        where = ", ".join(beyond)
        yield f"nats.url: production expects TLS to {where} (tls://, nats.tls_ca), or nats.allow_plain = true"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


# -- showing -----------------------------------------------------------------------------------------------


def masked(settings: Settings) -> dict[str, Any]:
    """All settings by dotted key, fit to be shown: secrets, and passwords in URLs, are ``********``."""
    shown: dict[str, Any] = {}
    for key, kind in KEYS.items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(settings, section) if section else settings, name)
        marks = hints(kind)
        if value and "secret" in marks:
            value = MASK
        elif value and "url" in marks:
            value = ",".join(_without_password(part) for part in str(value).split(","))
        shown[key] = list(value) if isinstance(value, tuple) else value
    for plugin, arguments in settings.plugin.items():
        for name, value in arguments.items():
            # A plugin does not say which of its arguments are secret, so the name has to.
            secret = re.search(r"secret|password|token(?!s)|key|credential|dsn|url", name)
            shown[f"plugin.{plugin}.{name}"] = MASK if value and secret else value
    return shown


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    user, colon, _ = parts.netloc.rpartition("@")[0].partition(":")
    # A lone name before the @ of a NATS url is a token.
    shown = f"{user}:{MASK}" if colon else MASK
    return urlunsplit(parts._replace(netloc=f"{shown}@{parts.netloc.rpartition('@')[2]}"))
