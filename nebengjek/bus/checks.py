"""What both brokers refuse before the server is asked, or say as the server would: stream and consumer specs."""

from collections.abc import Sequence

from msgspec import structs

from nebengjek.bus.errors import ApiError, InvalidName
from nebengjek.bus.specs import Ack, ConsumerSpec, Deliver, Discard, Push, StreamSpec
from nebengjek.bus.subjects import check_name, check_subject, subjects_collide
from nebengjek.contracts.message import InvalidSubject

EPHEMERAL_THRESHOLD = 5.0
"""Seconds after which an ephemeral consumer that nobody pulls from goes away, when it does not say."""


DUPLICATE_WINDOW = 120.0
"""Seconds, where a stream does not say; no longer than its messages live."""


def check_stream(spec: StreamSpec) -> StreamSpec:
    """The spec as it takes effect. Raises InvalidName, InvalidSubject, ApiError 10052."""
    check_name(spec.name)
    if spec.max_age < 0 or spec.duplicate_window < 0:
        raise _invalid("max_age and duplicate_window are not negative", status=500)
    limits = ("max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size", "max_consumers")
    unlimited = {name: -1 for name in limits if getattr(spec, name) <= 0}
    window = spec.duplicate_window or min(DUPLICATE_WINDOW, spec.max_age or DUPLICATE_WINDOW)
    spec = structs.replace(spec, subjects=spec.subjects or (spec.name,), duplicate_window=window, **unlimited)
    for subject in spec.subjects:
        check_subject(subject, literal=False)
        if subject == ">" or (subject.startswith(("$JS.", "$SYS.")) and not subject.startswith("$JS.EVENT.")):
            raise _invalid(f"a stream cannot take {subject}")
    for index, one in enumerate(spec.subjects):
        if any(subjects_collide(one, other) for other in spec.subjects[index + 1 :]):
            raise _invalid(f"{one} overlaps another subject of the stream")
    if 0 < spec.max_age < 0.1 or spec.duplicate_window < 0.1:
        raise _invalid("max_age and duplicate_window are at least 0.1 s")
    if 0 < spec.max_age < spec.duplicate_window:
        raise _invalid("the duplicate window is longer than max_age")
    if spec.discard_new_per_subject and not (spec.discard is Discard.NEW and spec.max_msgs_per_subject > 0):
        raise _invalid("discard_new_per_subject needs discard new and max_msgs_per_subject")
    return spec


def check_stream_change(old: StreamSpec, new: StreamSpec) -> None:
    """Raises ApiError 10052. Servers differ in what limits <-> interest does to stored messages: refused here."""
    if old.storage is not new.storage:
        raise _invalid("the storage of a stream cannot be changed", status=500)
    if old.retention is not new.retention:
        raise _invalid("the retention of a stream cannot be changed", status=500)


def check_consumer(spec: ConsumerSpec) -> ConsumerSpec:
    """The spec as it takes effect. Raises InvalidName, InvalidSubject, ApiError 10094, 10116, 10138, 10139 and more."""
    if spec.name is not None:
        check_name(spec.name)
    for index, subject in enumerate(spec.filters):
        if not subject:
            raise ApiError(10139, "an empty filter")
        check_subject(subject, literal=False)
        if any(subjects_collide(subject, other) for other in spec.filters[index + 1 :]):
            raise ApiError(10138, "filters of one consumer overlap")
    _check_start(spec)
    if spec.push is not None:
        _check_push(spec, spec.push)
    elif 0 < spec.max_expires < 0.001:
        raise ApiError(10115, "max_expires is at least 1 ms")
    if spec.ack_wait < 0:
        raise ApiError(10183, "ack_wait is negative")
    if any(pause < 0 for pause in spec.backoff):
        raise ApiError(10184, "a backoff is negative")
    if spec.backoff and 0 <= spec.max_deliver < len(spec.backoff):
        raise ApiError(10116, "max_deliver is less than the number of backoffs")
    defaults = ConsumerSpec()
    spec = structs.replace(
        spec,
        ack_wait=spec.backoff[0] if spec.backoff else spec.ack_wait or defaults.ack_wait,
        max_deliver=spec.max_deliver if spec.max_deliver > 0 else -1,
        max_ack_pending=spec.max_ack_pending or defaults.max_ack_pending,
        max_waiting=spec.max_waiting or defaults.max_waiting,
    )
    if spec.ack is Ack.NONE:
        # Nothing is waited for.
        waiting = {"ack_wait": defaults.ack_wait, "max_ack_pending": defaults.max_ack_pending}
        spec = structs.replace(spec, backoff=(), **waiting)
    if spec.name is None and not spec.inactive_threshold:
        spec = structs.replace(spec, inactive_threshold=EPHEMERAL_THRESHOLD)
    return spec


def _check_start(spec: ConsumerSpec) -> None:
    by_seq, by_time = spec.deliver is Deliver.BY_SEQ, spec.deliver is Deliver.BY_TIME
    if by_seq != (spec.start_seq is not None) or by_time != (spec.start_time is not None):
        raise ApiError(10094, "the deliver policy and the start do not fit")
    if by_seq and spec.start_seq == 0:
        raise ApiError(10094, "sequences begin at 1")
    if spec.deliver is Deliver.LAST_PER_SUBJECT and not spec.filters:
        raise ApiError(10094, "last per subject needs a filter")


def _check_push(spec: ConsumerSpec, push: Push) -> None:
    """Raises ApiError 10079, 10080, 10083, 10108, 10112, InvalidName. 10081, a cycle, is for the stream to see."""
    if "*" in push.subject or ">" in push.subject:
        raise ApiError(10079, "a deliver subject has no wildcards")
    try:
        check_subject(push.subject)
    except InvalidSubject as error:
        raise ApiError(10112, str(error)) from error
    if spec.max_waiting not in (0, ConsumerSpec().max_waiting):
        raise ApiError(10080, "at a push consumer nobody waits")
    if 0 < push.heartbeat < 0.1:
        raise ApiError(10083, "a heartbeat is at least 0.1 s")
    if push.flow_control and not push.heartbeat:
        raise ApiError(10108, "flow control needs a heartbeat")
    if push.group is not None and (not push.group or any(character.isspace() for character in push.group)):
        raise InvalidName(f"{push.group[:64]!r} cannot name a queue group")


def check_consumer_change(old: ConsumerSpec, new: ConsumerSpec) -> None:
    """Raises ApiError 10012."""
    for field in ("deliver", "start_seq", "start_time", "ack", "replay", "max_waiting"):
        if getattr(old, field) != getattr(new, field):
            raise _unchangeable(field)
    if (old.push is None) != (new.push is None):
        raise _unchangeable("push or pull")
    if old.push is not None and new.push is not None:
        for field in ("heartbeat", "flow_control"):
            if getattr(old.push, field) != getattr(new.push, field):
                raise _unchangeable(field)


def _unchangeable(what: str) -> ApiError:
    return ApiError(10012, f"{what} of a consumer cannot be changed", status=500)


def any_collide(some: Sequence[str], others: Sequence[str]) -> bool:
    """Do two sets of filters have a subject in common? No filters: every subject."""
    if not some or not others:
        return True
    return any(subjects_collide(one, other) for one in some for other in others)


def _invalid(description: str, *, status: int = 400) -> ApiError:
    return ApiError(10052, description, status=status)
