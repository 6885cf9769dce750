"""Who takes a subject: the memory broker's routing table, for streams, consumers and core subscriptions."""

from typing import Generic, TypeVar

from nebengjek.bus.subjects import subject_matches

T = TypeVar("T")

_REMEMBERED = 1024
"""Prefixes whose takers are remembered: types of messages are few, but an id in the middle of a subject is not."""


class SubjectTable(Generic[T]):
    """Patterns and what they lead to. ``match`` costs one look-up for each of the subjects seen before it.

    Subjects end in ids, so what is remembered is all but the last token. That is enough as long as no wildcard
    pattern ends in a literal token, and no literal pattern begins so.
    """

    def __init__(self) -> None:
        self._exact: dict[str, tuple[T, ...]] = {}
        self._exact_prefixes: set[str] = set()
        self._wild: list[tuple[str, T]] = []
        self._remembered: dict[str, tuple[T, ...]] = {}
        self._any_ending = True

    def add(self, pattern: str, taker: T) -> None:
        if "*" in pattern or ">" in pattern:
            self._wild.append((pattern, taker))
        else:
            self._exact[pattern] = (*self._exact.get(pattern, ()), taker)
        self._changed()

    def remove(self, taker: T) -> None:
        """Remove it under all its patterns; harmless when it is not there."""
        self._wild = [entry for entry in self._wild if entry[1] is not taker]
        for pattern, takers in list(self._exact.items()):
            rest = tuple(one for one in takers if one is not taker)
            if rest:
                self._exact[pattern] = rest
            else:
                del self._exact[pattern]
        self._changed()

    def by_prefix(self, prefix: str) -> bool:
        """Do all subjects that are ``prefix`` and one more token have the same takers?"""
        return self._any_ending and prefix not in self._exact_prefixes

    def match(self, subject: str) -> tuple[T, ...]:
        """The takers of a literal subject, each as often as it has patterns that take it."""
        prefix = prefix_of(subject)
        if not self.by_prefix(prefix):
            return self._exact.get(subject, ()) + self._search(subject)
        found = self._remembered.get(prefix)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            found = self._remembered[prefix] = self._search(subject)
        return found

    def _search(self, subject: str) -> tuple[T, ...]:
        return tuple(taker for pattern, taker in self._wild if subject_matches(pattern, subject))

    def _changed(self) -> None:
        self._remembered.clear()
        self._exact_prefixes = {prefix_of(pattern) for pattern in self._exact}
        self._any_ending = all(pattern.endswith(("*", ">")) for pattern, _ in self._wild)


def prefix_of(subject: str) -> str:
    """All but its last token, with the dot."""
    return subject[: subject.rfind(".") + 1]
