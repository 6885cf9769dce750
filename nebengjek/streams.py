"""Which streams there are, what they keep and for how long; and what a module's durable consumers are called."""

from collections.abc import Iterable, Sequence

from msgspec import structs

from nebengjek.bus.specs import Retention, Storage, StreamSpec
from nebengjek.bus.subjects import subject_matches
from nebengjek.errors import Misconfigured

MIB = 1024 * 1024
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def streams(replicas: int = 1) -> tuple[StreamSpec, ...]:
    """The application's streams; ``replicas``: 1, or 3 in a cluster. Plugins bring their own."""
    return tuple(structs.replace(spec, replicas=replicas) for spec in STREAMS)


STREAMS: tuple[StreamSpec, ...] = (
    StreamSpec(
        name="USER_STREAM",
        subjects=("user.>",),
        retention=Retention.INTEREST,
        max_age=24 * HOUR,
        max_bytes=100 * MIB,
        max_msgs=1_000_000,
        duplicate_window=5 * MINUTE,
        description="who exists, who drives, who is there, who looks for whom",
    ),
    StreamSpec(
        name="MATCH_STREAM",
        subjects=("match.>",),
        retention=Retention.INTEREST,
        max_age=1 * HOUR,
        max_bytes=50 * MIB,
        max_msgs=500_000,
        duplicate_window=5 * MINUTE,
        description="who is proposed to whom, and what they answered",
    ),
    StreamSpec(
        name="RIDE_STREAM",
        subjects=("ride.>",),
        retention=Retention.LIMITS,
        max_age=7 * DAY,
        max_bytes=200 * MIB,
        max_msgs=2_000_000,
        duplicate_window=5 * MINUTE,
        description="from the pick-up to the payment; kept as an audit trail",
    ),
    StreamSpec(
        name="LOCATION_STREAM",
        subjects=("location.>",),
        retention=Retention.INTEREST,
        storage=Storage.MEMORY,
        max_age=2 * HOUR,
        max_bytes=100 * MIB,
        max_msgs=1_000_000,
        duplicate_window=5 * MINUTE,
        description="points of phones, and how far a ride has come",
    ),
    StreamSpec(
        name="DEAD_LETTER_STREAM",
        subjects=("dead_letter.>",),
        retention=Retention.LIMITS,
        max_age=14 * DAY,
        max_bytes=100 * MIB,
        max_msgs=1_000_000,
        duplicate_window=5 * MINUTE,
        description="what a consumer could not handle, with its cause",
    ),
    StreamSpec(
        name="ADVISORY_STREAM",
        subjects=("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",),
        retention=Retention.LIMITS,
        max_age=14 * DAY,
        max_bytes=10 * MIB,
        max_msgs=100_000,
        duplicate_window=5 * MINUTE,
        description="what had its last delivery: the dead letters of processes that died on it",
    ),
)


def stream_of(event_type: str, specs: Sequence[StreamSpec] = STREAMS) -> StreamSpec:
    """The stream that takes ``ride.pickup.<id>``. Raises Misconfigured when none does."""
    for spec in specs:
        if any(subject_matches(pattern, f"{event_type}.x") for pattern in spec.subjects):
            return spec
    raise Misconfigured(f"no stream takes {event_type}: expected one of {', '.join(spec.name for spec in specs)}")


def durable_name(event_type: str, module: str) -> str:
    """``ride_pickup_match``: the durable consumer through which ``module`` hears ``ride.pickup``."""
    return f"{event_type.replace('.', '_')}_{module}"


def durable_names(heard: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The durable of each (event type, module).

    Raises Misconfigured when two would share one: each would then get half of the other's messages.
    """
    owners: dict[str, tuple[str, str]] = {}
    for event_type, module in heard:
        name = durable_name(event_type, module)
        if name in owners:
            one = " in ".join(owners[name])
            raise Misconfigured(f"{event_type} in {module} and {one} would share the durable consumer {name}")
        owners[name] = (event_type, module)
    return {owner: name for name, owner in owners.items()}


def check_capacity(specs: Sequence[StreamSpec], *, max_memory: int | None, max_storage: int | None) -> None:
    """Raises Misconfigured when what the streams may hold is more than JetStream is given (bytes, None = no limit)."""
    for storage, limit, name in (
        (Storage.MEMORY, max_memory, "max_memory"),
        (Storage.FILE, max_storage, "max_storage"),
    ):
        wanted = sum(spec.max_bytes * spec.replicas for spec in specs if spec.storage is storage)
        if limit is not None and wanted > limit:
            raise Misconfigured(f"nats.{name} is {limit} bytes: the {storage} streams may hold {wanted}, expected more")
