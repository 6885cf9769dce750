"""What chat counts and measures for ``/metrics``, each process for itself."""

from collections.abc import Callable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nebengjek.clock import Clock

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0, 300.0)
BYTES = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)


class Measures:
    """Workers say ``complete``, ``failed``, ``restarted`` and ``superseded``; pods with readers ``incomplete``."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._registry = registry
        self.questions = Counter("nebengjek_chat_questions", "Questions that were taken.", registry=registry)
        self._answers = Counter(
            "nebengjek_chat_answers", "Answers by what became of them.", ["outcome"], registry=registry
        )
        self.chunks = Counter("nebengjek_chat_chunks", "Chunks that workers said.", registry=registry)
        self._first = Histogram(
            "nebengjek_chat_first_chunk_seconds",
            "From a question to the first words of its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "nebengjek_chat_answer_seconds", "From a question to its stored answer.", buckets=SECONDS, registry=registry
        )
        self._lag = Histogram(
            "nebengjek_chat_delivery_seconds",
            "From a chunk's making to its coming to a pod, gathering included.",
            buckets=SECONDS,
            registry=registry,
        )
        self.message_bytes = Histogram(
            "nebengjek_chat_message_bytes",
            "Size of what workers say to pods, once to however many it goes.",
            buckets=BYTES,
            registry=registry,
        )
        self.under_way = Gauge(
            "nebengjek_chat_answers_open", "Answers that this process is giving now.", registry=registry
        )

    def readers(self, count: Callable[[], int]) -> None:
        """``count`` is asked when somebody looks."""
        gauge = Gauge("nebengjek_chat_readers", "Streams that this pod holds.", registry=self._registry)
        gauge.set_function(count)

    def answered(self, outcome: str, asked_at: datetime | None = None) -> None:
        self._answers.labels(outcome).inc()
        if asked_at is not None:
            self._whole.observe(self._since(asked_at))

    def first_words(self, asked_at: datetime) -> None:
        self._first.observe(self._since(asked_at))

    def delivered(self, said_at: datetime) -> None:
        self._lag.observe(self._since(said_at))

    def _since(self, moment: datetime) -> float:
        # The clocks of two machines differ, and a worker of another make may give a time without its zone.
        if moment.tzinfo is None:
            return 0.0
        return max(0.0, (self._clock.now() - moment).total_seconds())
