"""Phone numbers in what people write to each other: hidden, so that nobody needs the other's number, or keeps it.

Found however they are broken up or spelled: by blanks and signs, in digits of any script, in words. What is said in
several messages, one after the other, is looked at together. Prices, times and plates stay.
"""

import re
import unicodedata

MASK = "•••"

_UNSEEN = "\x00"
"""In the place of what has no width: no text has a NUL."""
_DIGIT = (
    r"(?:[0-9]|o(?![a-np-z])|nol|kosong|satu|dua|tiga|empat|lima|enam|tujuh|delapan|lapan|sembilan"
    r"|zero|one|two|three|four|five|six|seven|eight|nine)"
)
_ZERO, _EIGHT = r"(?:[0o]|nol|kosong|zero)", r"(?:8|delapan|lapan|eight)"
_SIX, _TWO = r"(?:6|enam|six)", r"(?:2|dua|two)"
# A colon is part of a time.
_BETWEEN = r"\x00*(?:(?:[^\w:\x00]|_)\x00*){0,4}"
_NARROW = r"[\s().\-_/\x00]{0,3}"
_LOCAL = rf"(?:{_SIX}{_BETWEEN}{_TWO}(?:{_BETWEEN}{_ZERO})?|{_ZERO}){_BETWEEN}{_EIGHT}(?:{_BETWEEN}{_DIGIT}){{7,11}}"
_ABROAD = rf"\+{_NARROW}[0-9](?:{_NARROW}[0-9]){{7,14}}"
_PLAIN = r"[0-9](?:\x00*[0-9]){9,14}"
_BARE = r"8[0-9]{2}[\s-]{1,3}[0-9]{3,4}[\s-]{1,3}[0-9]{3,5}"
_NUMBER = re.compile(rf"(?<![0-9])(?:\+?{_LOCAL}|{_ABROAD}|{_PLAIN}|{_BARE})\x00*(?![0-9])")


def mask_phone_numbers(text: str, before: str = "") -> str:
    """``text`` with ``•••`` for each phone number. ``before``: what was said just before, where one may begin."""
    plain = "".join(map(_plain, f"{before}\n{text}"))
    start = len(before) + 1
    parts, end = [], start
    for found in _NUMBER.finditer(plain):
        if found.end() > start:
            here = max(found.start(), start)
            parts += [text[end - start : here - start], MASK]
            end = found.end()
    return "".join([*parts, text[end - start :]])


def _plain(character: str) -> str:
    """One character for one, so that places stay the same."""
    if character.isascii():
        return character.lower()
    if (digit := unicodedata.digit(character, None)) is not None:
        return str(digit)
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return _UNSEEN
    return "+" if character == "\uff0b" else character
