"""``[plugin.chat]`` of the profile."""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Secret = Annotated[str, Meta(min_length=1)] | None
Url = Annotated[str, Meta(pattern=r"^https?://")] | None

SYSTEM_PROMPT = (
    "You are the help desk of NebengJek, a ride-hailing service in Indonesia. Answer riders and drivers briefly, in the"
    " language they write in. Facts about their rides come from the tools and from nowhere else: never guess a fare, a"
    " place or a time. When you cannot help, use hand_over."
)


class ChatSettings(Struct, frozen=True, kw_only=True):
    """Times in seconds. ``ai_provider`` answers where a request names none; ``providers``: those that it may name."""

    ai_provider: str = "ride_desk"
    providers: tuple[str, ...] = ()
    model: str = ""
    models: tuple[str, ...] = ()
    """Models besides ``model`` that a request may name."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.2
    max_tokens: Annotated[int, Meta(ge=1, le=100_000)] = 500
    system_prompt: str = SYSTEM_PROMPT
    history_turns: Annotated[int, Meta(ge=0, le=100)] = 10
    """Messages of the session that a question takes along."""
    tokens_per_day: Annotated[int, Meta(ge=0, le=10**9)] = 50_000
    """What the answers to one user may cost in 24 hours; 0 = no limit."""
    max_answer: Annotated[int, Meta(ge=100, le=100_000)] = 8_000
    """Characters; what goes beyond is cut off with ``finish_reason`` ``length``."""
    questions_open: Annotated[int, Meta(ge=1, le=16)] = 3
    """Questions of a session that may wait for their answers at once."""
    messages_per_minute: Count = 20
    sessions_per_user: Count = 500
    """Those of questions that he may begin; who needs no old one any more waits for ``keep_days``."""
    readers_per_user: Count = 20
    """Streams on one pod; of more the oldest end."""
    reader_timeout: Seconds = 20
    """A stream whose reader takes nothing for so long ends."""
    provider_timeout: Seconds = 60
    openai_api_key: Secret = None
    openai_base_url: Url = None
    anthropic_api_key: Secret = None
    anthropic_base_url: Url = None
    custom: str | None = None
    """Of ``custom``: dotted path of a factory, called with ``custom_options``."""
    custom_options: dict[str, Any] = field(default_factory=dict)
    missing_wait: Seconds = 30
    """For so long a missing chunk is waited for."""
    silence: Seconds = 150
    """After so long without a chunk an answer that had begun is given up."""
    batch_seconds: Annotated[float, Meta(gt=0, le=5)] = 0.05
    batch_chunks: Annotated[int, Meta(ge=1, le=1000)] = 100
    ping_seconds: Annotated[float, Meta(gt=0, le=600)] = 15
    redeliver_after: Annotated[float, Meta(ge=1, le=600)] = 15
    """A question whose worker says nothing for so long goes to another."""
    answer_timeout: Seconds = 300
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 32
    """Questions that a worker answers at once."""
    tries: Annotated[int, Meta(ge=1, le=20)] = 5
    replay_seconds: Seconds = 300
    """A reader that comes without Last-Event-ID is shown the answer to a last question that is younger."""
    ride_closes_after: Seconds = 1800
    keep_days: Annotated[int, Meta(ge=1, le=3650)] = 90
    health_timeout: Seconds = 2


"""What a pod is given to answer ``chat.pod.{pod_id}.health``."""
