"""JetStream's JSON and subjects, to and from the port's values. Durations are nanoseconds there, seconds here."""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nebengjek.bus.deliveries import PullStatus
from nebengjek.bus.errors import ApiError
from nebengjek.bus.interface import Account, Allowance
from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.specs import (
    Ack,
    ConsumerInfo,
    ConsumerSpec,
    Deliver,
    Discard,
    Push,
    Replay,
    Retention,
    SequencePair,
    Storage,
    StreamInfo,
    StreamSpec,
)
from nebengjek.bus.times import nanoseconds, rfc3339, seconds

Json = dict[str, Any]


def check_response(response: Json) -> Json:
    """Raises ApiError with the server's error code."""
    error = response.get("error")
    if error:
        raise ApiError(error.get("err_code", 0), error.get("description", ""), status=error.get("code", 500))
    return response


# -- the account


def account(response: Json) -> Account:
    tiers = {int(name[1:]): _usage(tier) for name, tier in (response.get("tiers") or {}).items()}
    if tiers:
        return Account(streams=response.get("streams", 0), tiers=tiers)
    return _usage(response)


def _usage(usage: Json) -> Account:
    limits = usage["limits"]
    return Account(
        allowed=Allowance(
            memory=limits["max_memory"],
            storage=limits["max_storage"],
            streams=limits["max_streams"],
            consumers=limits["max_consumers"],
        ),
        reserved_memory=usage.get("reserved_memory", 0),
        reserved_storage=usage.get("reserved_storage", 0),
        streams=usage.get("streams", 0),
    )


# -- streams


def stream_config(spec: StreamSpec) -> Json:
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": spec.retention.value,
        "storage": spec.storage.value,
        "max_age": nanoseconds(spec.max_age),
        "max_bytes": spec.max_bytes,
        "max_msgs": spec.max_msgs,
        "max_msgs_per_subject": spec.max_msgs_per_subject,
        "max_msg_size": spec.max_msg_size,
        "max_consumers": spec.max_consumers,
        "discard": spec.discard.value,
        "discard_new_per_subject": spec.discard_new_per_subject,
        "duplicate_window": nanoseconds(spec.duplicate_window),
        "num_replicas": spec.replicas,
        "description": spec.description,
    }


def stream_spec(config: Json) -> StreamSpec:
    return StreamSpec(
        name=config["name"],
        subjects=tuple(config.get("subjects") or ()),
        retention=Retention(config["retention"]),
        storage=Storage(config["storage"]),
        max_age=seconds(config.get("max_age", 0)),
        max_bytes=config.get("max_bytes", -1),
        max_msgs=config.get("max_msgs", -1),
        max_msgs_per_subject=config.get("max_msgs_per_subject", -1),
        max_msg_size=config.get("max_msg_size", -1),
        max_consumers=config.get("max_consumers", -1),
        discard=Discard(config.get("discard", "old")),
        discard_new_per_subject=config.get("discard_new_per_subject", False),
        duplicate_window=seconds(config.get("duplicate_window", 0)),
        replicas=config.get("num_replicas", 1),
        description=config.get("description", ""),
    )


def stream_info(response: Json) -> StreamInfo:
    state = response["state"]
    messages, last = state["messages"], state["last_seq"]
    return StreamInfo(
        spec=stream_spec(response["config"]),
        messages=messages,
        bytes=state["bytes"],
        # The server says 0 for a stream that never held anything, and last + 1 for one that is empty again.
        first_seq=state["first_seq"] if messages else last + 1,
        last_seq=last,
        consumers=state.get("consumer_count", 0),
        deleted=state.get("num_deleted", 0),
    )


def stored_message(stream: str, message: Json) -> StoredMessage:
    return StoredMessage(
        stream=stream,
        seq=message["seq"],
        subject=message["subject"],
        headers=_headers(base64.b64decode(message.get("hdrs", ""))),
        data=base64.b64decode(message.get("data", "")),
        time=datetime.fromisoformat(message["time"]),
    )


def _headers(block: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.decode().split("\r\n")[1:] if line)
    return {key: value.strip() for key, _, value in pairs}


# -- consumers


def consumer_config(spec: ConsumerSpec) -> Json:
    config: Json = {
        "deliver_policy": spec.deliver.value,
        "ack_policy": spec.ack.value,
        "replay_policy": spec.replay.value,
        "max_deliver": spec.max_deliver,
        "description": spec.description,
        "headers_only": spec.headers_only,
        "inactive_threshold": nanoseconds(spec.inactive_threshold),
    }
    if spec.push is None:
        config |= {
            "max_waiting": spec.max_waiting,
            "max_batch": spec.max_batch,
            "max_expires": nanoseconds(spec.max_expires),
            "max_bytes": spec.max_bytes,
        }
    else:
        config |= {
            "deliver_subject": spec.push.subject,
            "deliver_group": spec.push.group or "",
            "idle_heartbeat": nanoseconds(spec.push.heartbeat),
            "flow_control": spec.push.flow_control,
        }
    if spec.in_memory:
        config |= {"mem_storage": True, "num_replicas": 1}
    if spec.name is not None:
        config["name"] = config["durable_name"] = spec.name
    if len(spec.filters) == 1:
        config["filter_subject"] = spec.filters[0]
    elif spec.filters:
        config["filter_subjects"] = list(spec.filters)
    if spec.start_seq is not None:
        config["opt_start_seq"] = spec.start_seq
    if spec.start_time is not None:
        config["opt_start_time"] = rfc3339(spec.start_time)
    if spec.ack is not Ack.NONE:
        config["ack_wait"] = nanoseconds(spec.ack_wait)
        config["max_ack_pending"] = spec.max_ack_pending
        config["backoff"] = [nanoseconds(pause) for pause in spec.backoff]
    return config


def consumer_spec(config: Json) -> ConsumerSpec:
    filters = config.get("filter_subjects") or ([config["filter_subject"]] if config.get("filter_subject") else [])
    start_time = config.get("opt_start_time")
    defaults = ConsumerSpec()
    return ConsumerSpec(
        name=config.get("durable_name") or None,
        filters=tuple(filters),
        deliver=Deliver(config["deliver_policy"]),
        start_seq=config.get("opt_start_seq"),
        start_time=datetime.fromisoformat(start_time) if start_time else None,
        ack=Ack(config["ack_policy"]),
        ack_wait=seconds(config["ack_wait"]) if "ack_wait" in config else defaults.ack_wait,
        max_deliver=config.get("max_deliver", -1),
        backoff=tuple(seconds(pause) for pause in config.get("backoff") or ()),
        max_ack_pending=config.get("max_ack_pending", defaults.max_ack_pending),
        push=_push(config),
        max_waiting=config.get("max_waiting", defaults.max_waiting),
        max_batch=config.get("max_batch", 0),
        max_expires=seconds(config.get("max_expires", 0)),
        max_bytes=config.get("max_bytes", 0),
        inactive_threshold=seconds(config.get("inactive_threshold", 0)),
        headers_only=config.get("headers_only", False),
        replay=Replay(config["replay_policy"]),
        in_memory=config.get("mem_storage", False),
        description=config.get("description", ""),
    )


def _push(config: Json) -> Push | None:
    if not config.get("deliver_subject"):
        return None
    return Push(
        subject=config["deliver_subject"],
        group=config.get("deliver_group") or None,
        heartbeat=seconds(config.get("idle_heartbeat", 0)),
        flow_control=config.get("flow_control", False),
    )


def consumer_info(response: Json) -> ConsumerInfo:
    paused = response["config"].get("pause_until") if response.get("paused") else None
    return ConsumerInfo(
        stream=response["stream_name"],
        name=response["name"],
        spec=consumer_spec(response["config"]),
        delivered=_pair(response["delivered"]),
        ack_floor=_pair(response["ack_floor"]),
        num_pending=response["num_pending"],
        num_ack_pending=response["num_ack_pending"],
        num_redelivered=response["num_redelivered"],
        num_waiting=response["num_waiting"],
        bound=response.get("push_bound", False),
        paused_until=datetime.fromisoformat(paused) if paused else None,
    )


def _pair(pair: Json) -> SequencePair:
    return SequencePair(pair["consumer_seq"], pair["stream_seq"])


# -- pulls


def pull_status(headers: Mapping[str, str]) -> PullStatus | None:
    """Why a pull ended; None when that is not the end. The server tells one 409 from another by its text only."""
    code, text = headers.get("Status", ""), headers.get("Description", "").lower()
    # A heartbeat; or a farewell, behind which the connection breaks, and that is what ends the pull.
    if code == "100" or "server shutdown" in text:
        return None
    if code in _BY_CODE:
        return _BY_CODE[code]
    return next((status for words, status in _BY_TEXT if words in text), PullStatus.EXCEEDED)


_BY_CODE = {"404": PullStatus.NO_MESSAGES, "408": PullStatus.TIMEOUT, "503": PullStatus.NO_CONSUMER}
_BY_TEXT = (
    ("message size exceeds", PullStatus.MAX_BYTES),
    ("maxwaiting", PullStatus.MAX_WAITING),
    ("consumer deleted", PullStatus.CONSUMER_DELETED),
    ("push based", PullStatus.PUSH_BASED),
    ("batch completed", PullStatus.COMPLETE),
    ("leadership change", PullStatus.SILENT),
)
