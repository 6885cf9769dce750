"""Settings: defaults that suit a laptop, a profile, the environment, and what refuses to start."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from nebengjek.errors import Misconfigured
from nebengjek.profile import size
from nebengjek.settings import KEYS, MASK, REFERENCE_NAMES, Settings, given, load, masked

ROOT = Path(__file__).parent.parent
PROFILES = sorted((ROOT / "settings").glob("*.toml"))

PRODUCTION = {
    "NEBENGJEK__PROFILE": "production",
    "NEBENGJEK__AUTH__JWT_SECRET": "k" * 32,
    "NEBENGJEK__ADMIN__API_KEY": "an-operator-key-of-its-own",
    "NEBENGJEK__SMS__URL": "https://sms.example/send",
}
CLUSTER = PRODUCTION | {
    "NATS_URL": "tls://nats.example:4222",
    "NEBENGJEK__NATS__USER": "app",
    "NEBENGJEK__NATS__PASSWORD": "pw",
    "NEBENGJEK__NATS__EVENT_KEYS": "0a" * 32,
    "REDIS_URL": "redis://redis.example",
    "DATABASE_URL": "postgresql://app:pw@db.example/nebengjek",
}


def refusal(env: dict[str, str], path: Path | None = None) -> str:
    with pytest.raises(Misconfigured) as caught:
        load(path, env)
    return str(caught.value)


def profile(directory: Path, text: str) -> Path:
    path = directory / "some.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_any_setting_everything_is_embedded_and_codes_are_shown() -> None:
    settings = load()
    assert (settings.nats.is_real, settings.redis.is_real, settings.database.is_real) == (False, False, False)
    assert settings.profile == "development"
    assert settings.auth.otp_debug is True
    assert settings.auth.otp_per_address == 0
    assert settings.database.file == Path("nebengjek.sqlite3")
    assert (settings.match.radius_km, settings.match.offer_ttl, settings.billing.rate_per_km) == (5.0, 30, 3000)
    assert (settings.rides.charge_timeout, settings.rides.settle_after) == (5, 10)


def test_reference_names_turn_the_real_parts_on() -> None:
    settings = load(
        env={
            "NATS_URL": "nats://a:4222,nats://b:4222",
            "NATS_CLUSTER_ID": "jakarta",
            "NATS_CLIENT_ID": "pod-1",
            "JETSTREAM_DOMAIN": "hub",
            "JETSTREAM_MAX_MEMORY": "1GB",
            "JETSTREAM_MAX_STORAGE": "10G",
            "REDIS_URL": "redis://localhost",
            "DATABASE_URL": "postgresql://u:p@localhost/x",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
        }
    )
    assert (settings.nats.is_real, settings.redis.is_real, settings.database.is_real) == (True, True, True)
    assert settings.nats.pod_id == "jakarta-pod-1"
    assert settings.nats.domain == "hub"
    assert (settings.nats.max_memory, settings.nats.max_storage) == (1024**3, 10 * 1000**3)
    assert settings.database.file is None
    assert settings.telemetry.otlp_endpoint == "http://localhost:4318"


def test_jetstream_disabled_keeps_the_bus_embedded() -> None:
    assert load(env={"NATS_URL": "nats://localhost", "JETSTREAM_ENABLED": "false"}).nats.is_real is False


def test_an_empty_reference_name_is_not_set() -> None:
    assert load(env=dict.fromkeys(REFERENCE_NAMES, "")) == load()


def test_the_environment_goes_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = profile(tmp_path, 'plugins = ["a.b:c"]\n[match]\nradius_km = 2\nmax_candidates = 7\n[plugin.c]\nn = 1\n')
    env = {"NEBENGJEK_SETTINGS": str(path), "NEBENGJEK__MATCH__RADIUS_KM": "3.5", "NEBENGJEK__PLUGIN__C__M": "2"}
    settings = load(env=env)
    assert (settings.match.radius_km, settings.match.max_candidates, settings.match.offer_ttl) == (3.5, 7, 30)
    assert settings.plugins == ("a.b:c",)
    assert settings.plugin == {"c": {"n": 1, "m": 2}}
    assert given(None, env)["match.radius_km"].origin == "NEBENGJEK__MATCH__RADIUS_KM"
    assert given(None, env)["match.max_candidates"].origin == str(path)


def test_a_list_in_the_environment_is_separated_by_commas() -> None:
    assert load(env={"NEBENGJEK__AUTH__ALLOWED_PREFIXES": "811, 812"}).auth.allowed_prefixes == ("811", "812")
    assert load(env={"NEBENGJEK__AUTH__ALLOWED_PREFIXES": ""}).auth.allowed_prefixes == ()


def test_foreign_variables_are_not_ours_to_judge() -> None:
    assert load(env={"NEBENGJEK_PORT": "tcp://10.0.0.1:80", "PATH": "/bin"}) == load()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"NEBENGJEK__MATCH__RADIUS": "3"}, "NEBENGJEK__MATCH__RADIUS: there is no such setting; did you mean"),
        ({"NEBENGJEK__RADIUS_KM": "3"}, "did you mean NEBENGJEK__MATCH__RADIUS_KM?"),
        ({"NEBENGJEK__MATCH__RADIUS_KM": "far"}, "match.radius_km = 'far' (NEBENGJEK__MATCH__RADIUS_KM): expected"),
        ({"NEBENGJEK__MATCH__RADIUS_KM": "51"}, "expected `float` <= 50.0"),
        ({"NEBENGJEK__MATCH__RADIUS_KM": "nan"}, "match.radius_km = 'nan'"),
        ({"NEBENGJEK__LOCATION__TTL": "inf"}, "location.ttl = 'inf'"),
        ({"NEBENGJEK__PROFILE": "prod"}, "profile = 'prod'"),
        ({"NEBENGJEK__WEB__PORT": "65536"}, "web.port = '65536'"),
        ({"NEBENGJEK__LOG__AUDIT": "perhaps"}, "log.audit = 'perhaps' (NEBENGJEK__LOG__AUDIT): expected `bool`"),
        ({"NEBENGJEK__AUTH__ALLOWED_PREFIXES": "0811"}, "auth.allowed_prefixes"),
        ({"JETSTREAM_MAX_MEMORY": "much"}, "nats.max_memory = 'much' (JETSTREAM_MAX_MEMORY): expected a size"),
        ({"JETSTREAM_ENABLED": "maybe"}, "nats.enabled = 'maybe' (JETSTREAM_ENABLED): expected `bool`"),
        ({"NATS_URL": "localhost:4222"}, "nats.url: expected nats://"),
        ({"NATS_URL": "nats://a,http://b"}, "nats.url: expected nats://"),
        ({"DATABASE_URL": "mysql://x"}, "database.url: expected sqlite://"),
        ({"REDIS_URL": "localhost"}, "redis.url: expected redis://"),
        ({"NEBENGJEK__NATS__EVENT_KEYS": "a secret"}, "nats.event_keys: expected 64 hexadecimal digits"),
        ({"NEBENGJEK__NATS__USER": "app"}, "nats.user and nats.password: expected both"),
        ({"NEBENGJEK__NATS__TLS_CERT": "c.pem"}, "nats.tls_cert and nats.tls_key: expected both"),
        (
            {"NEBENGJEK__NATS__CREDENTIALS": "nowhere.creds"},
            "nats.credentials = 'nowhere.creds': there is no",
        ),
        ({"NATS_CLIENT_ID": "a.b"}, "nats.client_id"),
        ({"NEBENGJEK__AUTH__JWT_SECRET": ""}, "auth.jwt_secret (NEBENGJEK__AUTH__JWT_SECRET): expected"),
        ({"NEBENGJEK__WEB__TRUSTED_PROXIES": "10.0.0.0/8,lb"}, "web.trusted_proxies: 'lb' is no address"),
        ({"NEBENGJEK__RIDES__CHARGE_TIMEOUT": "14.5"}, "rides.charge_timeout = '14.5'"),
        (
            {"NEBENGJEK__RIDES__SETTLE_AFTER": "5"},
            "rides.settle_after = 5: expected more than rides.charge_timeout (5)",
        ),
        ({"NEBENGJEK__RIDES__CHARGE_TIMEOUT": "12"}, "rides.settle_after = 10: expected more than"),
        ({"NEBENGJEK_SETTINGS": "nowhere.toml"}, "there is no settings file nowhere.toml"),
    ],
)
def test_a_mistake_in_the_environment_is_named(env: dict[str, str], said: str) -> None:
    assert said in refusal(env)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[match]\nradius = 3", "match.radius in {path}: there is no such setting; did you mean match.radius_km?"),
        ("[matching]\nradius_km = 3", "matching.radius_km in {path}: there is no such setting; did you mean match.rad"),
        ("[nonsense]", "nonsense in {path}: there is no such setting"),
        ("match = 3", "match in {path}: expected a table, [match]"),
        ('[match]\nradius_km = "3"', "match.radius_km = '3' ({path}): expected `float`, got `str`"),
        ("plugin = 3", "plugin in {path}: expected a table"),
        ("[plugin]\nchat = 3", "plugin.chat in {path}: expected a table"),
        ("match = [", "the settings file {path} is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = profile(tmp_path, text)
    assert said.format(path=path) in refusal({}, path)


def test_all_mistakes_are_said_at_once() -> None:
    said = refusal({"NEBENGJEK__WEB__PORT": "x", "NEBENGJEK__MATCH__RADIUS_KM": "0"})
    assert "web.port" in said
    assert "match.radius_km" in said


def test_a_refusal_never_shows_a_secret() -> None:
    said = refusal({"NEBENGJEK__NATS__URL": "http://user:hunter2@host", "NEBENGJEK__PROFILE": "test"} | PRODUCTION)
    assert "nats.url" in said
    assert "hunter2" not in said


def test_a_complete_production_starts_alone_and_in_a_cluster() -> None:
    alone = load(env=PRODUCTION)
    assert alone.auth.otp_debug is False
    assert alone.auth.otp_per_address == 10
    assert load(env=CLUSTER).nats.is_real
    for url in ("nats://127.0.0.1:4222", "nats://localhost"):
        assert load(env=CLUSTER | {"NATS_URL": url}).nats.is_real
    assert load(env=CLUSTER | {"NATS_URL": "nats://nats:4222", "NEBENGJEK__NATS__ALLOW_PLAIN": "true"}).nats.is_real


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"NEBENGJEK__AUTH__JWT_SECRET": None}, "auth.jwt_secret is the one that everybody knows"),
        ({"NEBENGJEK__AUTH__JWT_SECRET": "k" * 31}, "auth.jwt_secret has 31 bytes: expected at least 32"),
        ({"NEBENGJEK__ADMIN__API_KEY": None}, "admin.api_key"),
        ({"NEBENGJEK__ADMIN__API_KEY": "short"}, "admin.api_key"),
        ({"NEBENGJEK__AUTH__OTP_DEBUG": "true"}, "auth.otp_debug"),
        ({"NEBENGJEK__AUTH__OTP_PER_ADDRESS": "0"}, "auth.otp_per_address"),
        ({"NEBENGJEK__SMS__URL": None}, "sms.url"),
        ({"NEBENGJEK__NATS__USER": None, "NEBENGJEK__NATS__PASSWORD": None}, "nats: production expects authentication"),
        ({"NATS_URL": "nats://nats.example:4222"}, "nats.url: production expects TLS to nats.example"),
        ({"NATS_URL": "nats://127.0.0.1.example.com"}, "nats.url: production expects TLS to 127.0.0.1.example.com"),
        ({"NATS_URL": "tls://a,nats://b"}, "nats.url: production expects TLS to b"),
        ({"NEBENGJEK__NATS__EVENT_KEYS": None}, "nats.event_keys is not set"),
        ({"DATABASE_URL": None}, "database.url is SQLite"),
        ({"DATABASE_URL": "postgresql://a:development-only@h/d"}, "database.url has the password that everybody knows"),
        ({"REDIS_URL": "redis://:development-only@h"}, "redis.url has the password that everybody knows"),
        ({"NEBENGJEK__NATS__PASSWORD": "development-only"}, "nats.password has the password that everybody knows"),
        ({"REDIS_URL": None}, "redis.url is not set"),
    ],
)
def test_production_refuses(change: dict[str, str | None], said: str) -> None:
    env = {key: value for key, value in (CLUSTER | change).items() if value is not None}
    assert said in refusal(env)


def test_authentication_inside_the_url_counts() -> None:
    env = {
        key: value
        for key, value in CLUSTER.items()
        if key not in ("NEBENGJEK__NATS__USER", "NEBENGJEK__NATS__PASSWORD")
    }
    assert load(env=env | {"NATS_URL": "tls://app:pw@nats.example"}).nats.is_real


def test_the_test_profile_wants_a_long_secret_too() -> None:
    assert load(env={"NEBENGJEK__PROFILE": "test"}).auth.otp_debug is True
    assert "at least 32" in refusal({"NEBENGJEK__PROFILE": "test", "NEBENGJEK__AUTH__JWT_SECRET": "short"})


def test_masked_shows_every_setting_and_no_secret() -> None:
    env = CLUSTER | {
        "NATS_URL": "tls://a-token@one.example:4222,tls://app:hunter2@two.example",
        "NEBENGJEK__NATS__TOKEN": "hunter2",
        "NEBENGJEK__SMS__TOKEN": "hunter2",
        "NEBENGJEK__PLUGIN__CHAT__API_KEY": "hunter2",
        "NEBENGJEK__PLUGIN__CHAT__LINES": "3",
    }
    shown = masked(load(env=env))
    assert set(KEYS) < set(shown)
    assert shown["nats.url"] == f"tls://{MASK}@one.example:4222,tls://app:{MASK}@two.example"
    assert shown["database.url"] == f"postgresql://app:{MASK}@db.example/nebengjek"
    assert (shown["plugin.chat.api_key"], shown["plugin.chat.lines"]) == (MASK, 3)
    assert (shown["auth.jwt_secret"], shown["admin.api_key"]) == (MASK, MASK)
    nats = masked(
        load(env={"NEBENGJEK__NATS__USER": "app", "NEBENGJEK__NATS__PASSWORD": "p", "NATS_URL": "nats://t0ken@n"})
    )
    assert (nats["nats.user"], nats["nats.password"], nats["nats.url"]) == ("app", MASK, f"nats://{MASK}@n")
    assert masked(load(env={"NEBENGJEK__NATS__TOKEN": "t0ken"}))["nats.token"] == MASK
    text = repr(shown)
    for secret in ("hunter2", "a-token", "k" * 32, "an-operator-key", ":pw@"):
        assert secret not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1048576", 1048576), ("1B", 1), ("1kb", 1024), ("1.5MiB", 1572864), ("2G", 2_000_000_000)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 PB", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        size(text)


def test_every_section_is_frozen() -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.web.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles_have_only_known_keys_and_no_secret(path: Path) -> None:
    found = given(path, {})
    assert found
    assert tomllib.loads(path.read_text(encoding="utf-8"))["profile"] in ("development", "test", "production")
    assert not {key for key in found if key in ("auth.jwt_secret", "admin.api_key", "nats.password", "sms.token")}


def test_the_types_of_all_settings_can_be_converted_to() -> None:
    for kind in KEYS.values():
        msgspec.json.schema(kind)


def test_every_setting_is_read_by_somebody() -> None:
    """A setting without effect is worse than none."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nebengjek").rglob("*.py"))
    for key in KEYS:
        assert re.search(rf"[\w\]]\.{key.rpartition('.')[2]}\b", source), key


def test_the_table_in_the_docs_has_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", text, re.MULTILINE))
    assert set(KEYS) <= set(rows)
    assert not {key for key in rows if key.partition(".")[0] in {known.partition(".")[0] for known in KEYS}} - set(KEYS)
    defaults = masked(Settings())
    for key, default in defaults.items():
        if defaults[key] == MASK:
            assert rows[key] == "a well-known one"
        elif default in (None, []):
            assert rows[key] == "none", key
        else:
            assert rows[key] == f"`{str(default).lower() if isinstance(default, bool) else default}`", key
