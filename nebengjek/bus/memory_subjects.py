"""Who takes a subject: the memory broker's routing table, for streams, consumers and core subscriptions."""

from typing import Generic, TypeVar

from nebengjek.bus.interface import subject_matches

T = TypeVar("T")

_REMEMBERED = 1024
"""Prefixes whose takers are remembered: types of messages are few, but an id in the middle of a subject is not."""


class SubjectTable(Generic[T]):
    """Patterns and what they lead to. ``match`` costs one look-up for each of the subjects seen before it.

    Subjects end in ids, so what is remembered is all but the last token. That is enough as long as no wildcard
    pattern ends in a literal token; literal patterns are found by the whole subject.
    """

    def __init__(self) -> None:
        self._exact: dict[str, tuple[T, ...]] = {}
        self._wild: list[tuple[str, T]] = []
        self._remembered: dict[str, tuple[T, ...]] = {}
        self._by_prefix = True

    def add(self, pattern: str, taker: T) -> None:
        if "*" in pattern or ">" in pattern:
            self._wild.append((pattern, taker))
            self._changed()
        else:
            self._exact[pattern] = (*self._exact.get(pattern, ()), taker)

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

    def match(self, subject: str) -> tuple[T, ...]:
        """The takers of a literal subject, each as often as it has patterns that take it."""
        exact = self._exact.get(subject, ())
        if not self._wild:
            return exact
        if not self._by_prefix:
            return exact + self._search(subject)
        prefix = subject[: subject.rfind(".") + 1]
        found = self._remembered.get(prefix)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            found = self._remembered[prefix] = self._search(subject)
        return exact + found if exact else found

    def _search(self, subject: str) -> tuple[T, ...]:
        return tuple(taker for pattern, taker in self._wild if subject_matches(pattern, subject))

    def _changed(self) -> None:
        self._remembered.clear()
        self._by_prefix = all(pattern.endswith(("*", ">")) for pattern, _ in self._wild)
