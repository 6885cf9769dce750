"""What pods tell each other, outside every stream: that they are there, and what is for a phone of another pod."""

from datetime import datetime

from msgspec import Raw, Struct

from nebengjek.contracts.message import token

HEARTBEAT = "pod.heartbeat"
BROADCASTS = "session.*.broadcast"


def health_subject(pod_id: str) -> str:
    """Where a pod answers with its ``PodHeartbeat``, by request-reply."""
    return f"pod.{token(pod_id)}.health"


def deliver_subject(pod_id: str) -> str:
    """Where a pod hears what is for its phones: ``PodPosts``."""
    return f"pod.{token(pod_id)}.deliver"


def broadcast_subject(user_id: str) -> str:
    """Where every pod hears what is for a user when it is not known which pod has his phone: ``PodPosts``."""
    return f"session.{token(user_id)}.broadcast"


class PodHeartbeat(Struct, frozen=True, kw_only=True):
    """What a pod says of itself. ``embedded``: parts that live in its process and nowhere else."""

    pod_id: str
    timestamp: datetime
    active_connections: int
    memory_usage_mb: float
    cpu_usage_percent: float
    modules: list[str]
    embedded: list[str]


class PostedAnswer(Struct, frozen=True, kw_only=True):
    """The answer to a frame, whole, for the connection that sent it."""

    connection_id: str
    frame: Raw


class UserPost(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """For a user's phones. ``mail``: his mailbox holds more, go and look. ``shown``: whole frames by their kind."""

    user_id: str
    mail: bool = False
    shown: dict[str, Raw] = {}
    answers: list[PostedAnswer] = []


class PodPosts(Struct, frozen=True, kw_only=True):
    """For some users at once; whoever holds none of a user's phones leaves his post aside."""

    posts: list[UserPost]
