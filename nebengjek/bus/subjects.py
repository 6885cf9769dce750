"""Subjects, filters and names: which are allowed, and which filter takes what (rules N1-N3 of docs/bus.md)."""

import re

from nebengjek.bus.errors import InvalidName
from nebengjek.contracts.message import InvalidSubject

_TOKEN = re.compile(r"[!-~]+")
# Nearly every subject is fine and this runs for each publish: one match, before the search for what is wrong.
_LITERAL = re.compile(r"(?:[!-)+\-/-=?-~]+\.){0,15}[!-)+\-/-=?-~]+")
_NAME = re.compile(r"[^.*>/\\\s]{1,255}")


def check_subject(subject: str, *, literal: bool = True) -> str:
    """Rule N1: 1-16 tokens of ASCII 33-126, at most 255 characters; wildcards only as whole tokens in a filter.

    Raises InvalidSubject.
    """
    if len(subject) <= 255 and _LITERAL.fullmatch(subject):
        return subject
    tokens = subject.split(".")
    if len(subject) > 255 or len(tokens) > 16:
        raise InvalidSubject(f"{subject[:64]!r} is longer than 255 characters or 16 tokens")
    for index, part in enumerate(tokens):
        if not _TOKEN.fullmatch(part):
            raise InvalidSubject(f"{subject[:64]!r} has an empty token, white space or a non-ASCII character")
        if "*" in part or ">" in part:
            if literal:
                raise InvalidSubject(f"{subject[:64]!r} has a wildcard")
            if part not in ("*", ">") or (part == ">" and index != len(tokens) - 1):
                raise InvalidSubject(f"{subject[:64]!r} has a wildcard inside a token, or > before the end")
    return subject


def check_name(name: str) -> str:
    """Rule N3. Raises InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:64]!r} cannot name a stream or consumer")
    return name


def subject_matches(pattern: str, subject: str) -> bool:
    """Does the filter ``pattern`` take the literal ``subject`` (rule N1)?"""
    wanted, given = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


def subjects_collide(a: str, b: str) -> bool:
    """Is there a subject that both filters take?"""
    left, right = a.split("."), b.split(".")
    for one, other in zip(left, right, strict=False):
        if one == ">" or other == ">":
            return True
        if one != other and "*" not in (one, other):
            return False
    return len(left) == len(right)


def subject_subset(inner: str, outer: str) -> bool:
    """Does ``outer`` take every subject that ``inner`` takes?"""
    narrow, wide = inner.split("."), outer.split(".")
    for index, part in enumerate(wide):
        if part == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">":
            return False
        if part != "*" and part != narrow[index]:
            return False
    return len(narrow) == len(wide)
