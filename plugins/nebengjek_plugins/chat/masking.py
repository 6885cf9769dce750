"""Phone numbers in what people write to each other: hidden, so that nobody needs the other's number, or keeps it."""

import re
import unicodedata

_LOCAL = r"(?:\+?62|0)[\s().\-_/]{0,3}8(?:[\s().\-_/]{0,3}\d){7,11}"
_ABROAD = r"\+[\s().\-_/]{0,3}\d(?:[\s().\-_/]{0,3}\d){7,14}"
_PLAIN = r"\d{10,15}"
_NUMBER = re.compile(rf"(?<!\d)(?:{_LOCAL}|{_ABROAD}|{_PLAIN})(?!\d)")
MASK = "•••"


def mask_phone_numbers(text: str) -> str:
    """``text`` with ``•••`` for each phone number, also one with blanks, dots or dashes, or in digits of any script."""
    plain = "".join(_plain(character) for character in text)
    parts, end = [], 0
    for found in _NUMBER.finditer(plain):
        parts += [text[end : found.start()], MASK]
        end = found.end()
    return "".join([*parts, text[end:]])


def _plain(character: str) -> str:
    """One character for one, so that places stay the same."""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return "+" if character == "\uff0b" else character
