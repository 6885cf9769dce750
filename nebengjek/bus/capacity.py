"""Making the streams at the start, when the account has room for them; when it has not, saying which and how much."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from nebengjek.bus.errors import ApiError
from nebengjek.bus.interface import Account, Broker
from nebengjek.bus.specs import Storage, StreamSpec
from nebengjek.errors import Misconfigured
from nebengjek.profile import size_text

UNKNOWN_STREAM = 10059
NO_JETSTREAM = 10039
_NO_ROOM = {
    10023: "the cluster has no room for it",
    10026: "it has as many consumers as the account allows",
    10027: "the account allows no further stream",
    10028: "the server has no memory for it",
    10047: "the server has no storage for it",
    10120: "the account allows nothing with so many replicas",
}
_SETTING = {Storage.MEMORY: "max_memory", Storage.FILE: "max_storage"}


async def ensure_streams(broker: Broker, specs: Sequence[StreamSpec], consumers: Collection[tuple[str, str]]) -> None:
    """Create or update all of them, or none of those that are missing.

    ``consumers``: (stream, name) of the durables that will be made on them. Raises Misconfigured when the account does
    not allow it, ApiError when the server refuses for another reason.
    """
    try:
        account = await broker.account()
    except ApiError as error:
        if error.code == NO_JETSTREAM:
            raise Misconfigured(f"JetStream is not enabled for our account at {broker.where}") from error
        raise
    present = {spec.name: await _present(broker, spec.name) for spec in specs} if _is_limited(account) else {}
    check_account(specs, present, consumers, account)
    for spec in specs:
        try:
            await broker.ensure_stream(spec)
        except ApiError as error:
            if error.code not in _NO_ROOM:
                raise
            size = f"{spec.storage} storage, {size_text(spec.max_bytes * spec.replicas)}"
            raise Misconfigured(f"{spec.name} ({size}): {_NO_ROOM[error.code]} ({error})") from error


async def _present(broker: Broker, name: str) -> StreamSpec | None:
    try:
        return (await broker.stream_info(name)).spec
    except ApiError as error:
        if error.code != UNKNOWN_STREAM:
            raise
        return None


def _is_limited(account: Account) -> bool:
    allowed = account.allowed
    return bool(account.tiers) or max(allowed.memory, allowed.storage, allowed.streams, allowed.consumers) >= 0


def check_account(
    specs: Sequence[StreamSpec],
    present: Mapping[str, StreamSpec | None],
    consumers: Collection[tuple[str, str]],
    account: Account,
) -> None:
    """Raises Misconfigured, naming the streams that do not fit and what the account allows.

    ``present``: what is there already by the streams' names; its room is taken.
    """
    problems: list[str] = []
    for replicas in sorted({spec.replicas for spec in specs}):
        tier = account.tiers.get(replicas) if account.tiers else account
        those = [spec for spec in specs if spec.replicas == replicas]
        if tier is None:
            names = ", ".join(spec.name for spec in those)
            problems.append(f"the account allows nothing with {replicas} replicas: {names}")
            continue
        counted = 1 if account.tiers else replicas
        problems += _too_big(those, present, tier, counted)
        problems += _too_many(those, present, consumers, tier)
    if problems:
        raise Misconfigured("JetStream has no room for our streams:\n" + "\n".join(problems))


def _too_big(
    specs: Sequence[StreamSpec], present: Mapping[str, StreamSpec | None], account: Account, counted: int
) -> list[str]:
    problems = []
    for storage, allowed, reserved in (
        (Storage.MEMORY, account.allowed.memory, account.reserved_memory),
        (Storage.FILE, account.allowed.storage, account.reserved_storage),
    ):
        more = {spec.name: _more(spec, present.get(spec.name)) * counted for spec in specs if spec.storage is storage}
        more = {name: size for name, size in more.items() if size > 0}
        if 0 <= allowed < reserved + sum(more.values()):
            names = ", ".join(f"{name} {size_text(size)}" for name, size in more.items())
            taken = f", of which streams that are there reserve {size_text(reserved)}" if reserved else ""
            problems.append(
                f"{names} ({storage} storage) need {size_text(sum(more.values()))}: "
                f"the account allows {size_text(allowed)}{taken}; raise its {_SETTING[storage]}"
            )
    return problems


def _more(spec: StreamSpec, present: StreamSpec | None) -> int:
    """Bytes that it will reserve and does not yet."""
    return max(0, spec.max_bytes) - (max(0, present.max_bytes) if present is not None else 0)


def _too_many(
    specs: Sequence[StreamSpec],
    present: Mapping[str, StreamSpec | None],
    consumers: Collection[tuple[str, str]],
    account: Account,
) -> list[str]:
    problems = []
    new = [spec.name for spec in specs if present.get(spec.name) is None]
    if 0 <= account.allowed.streams < account.streams + len(new):
        problems.append(
            f"{', '.join(new)} are {len(new)} more: the account allows {account.allowed.streams} streams "
            f"and has {account.streams}; raise its max_streams"
        )
    wanted = Counter(stream for stream, _ in consumers)
    problems += [
        f"{spec.name} has {wanted[spec.name]} consumers: the account allows {account.allowed.consumers} "
        "on a stream; raise its max_consumers"
        for spec in specs
        if 0 <= account.allowed.consumers < wanted[spec.name]
    ]
    return problems
