"""Indonesian phone numbers and vehicle plates, parsed at the edge."""

import re
from collections.abc import Sequence

import phonenumbers

from nebengjek.errors import Invalid

REGION = "ID"
_NUMBER = re.compile(r"\+?[0-9 ().\-/]+")
"""As people write numbers. The library would take letters for the digits beside them on a keypad."""
_PLATE = re.compile(r"([A-Z]{1,2})[ -]?([1-9][0-9]{0,3})[ -]?([A-Z]{0,3})")


class InvalidMsisdn(Invalid):
    """Not an Indonesian mobile number, or not of an allowed operator."""

    code = "INVALID_MSISDN"


def parse_msisdn(text: str, allowed_prefixes: Sequence[str] = ()) -> str:
    """E.164 (``+62811…``) of ``0811…``, ``+62 811-…`` or ``62811…``. Raises InvalidMsisdn.

    ``allowed_prefixes`` (``811``, ``0812`` …) narrows it to operators; empty allows every Indonesian mobile.
    """
    if len(text) > 32:
        raise InvalidMsisdn("msisdn: longer than any phone number")
    digits = text.strip()
    if not _NUMBER.fullmatch(digits):
        raise InvalidMsisdn("msisdn: not a phone number")
    if digits.startswith("62"):
        digits = f"+{digits}"
    try:
        number = phonenumbers.parse(digits, REGION)
    except phonenumbers.NumberParseException as error:
        raise InvalidMsisdn("msisdn: not a phone number") from error
    if phonenumbers.region_code_for_number(number) != REGION or not phonenumbers.is_valid_number(number):
        raise InvalidMsisdn("msisdn: not a valid Indonesian number")
    if phonenumbers.number_type(number) not in (
        phonenumbers.PhoneNumberType.MOBILE,
        phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE,
    ):
        raise InvalidMsisdn("msisdn: not a mobile number")
    national = str(number.national_number)
    if allowed_prefixes and not national.startswith(tuple(prefix.lstrip("0") for prefix in allowed_prefixes)):
        raise InvalidMsisdn("msisdn: this operator is not served")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def parse_plate(text: str) -> str:
    """``B 1234 XYZ`` of ``b1234xyz`` and the like: region letters, 1-4 digits, up to 3 letters. Raises Invalid."""
    match = _PLATE.fullmatch(text.strip().upper()) if text.isascii() else None
    if match is None:
        raise Invalid("vehicle_plate: expected region letters, 1-4 digits and up to 3 letters, as in B 1234 XYZ")
    return " ".join(part for part in match.groups() if part)
