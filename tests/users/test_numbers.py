"""Phone numbers and plates as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebengjek.errors import Invalid
from nebengjek.users.numbers import InvalidMsisdn, parse_msisdn, parse_plate


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("08111234567", "+628111234567"),
        ("0811 1234 5678", "+6281112345678"),
        ("+62 811-1234-567", "+628111234567"),
        ("628111234567", "+628111234567"),
        ("+628111234567", "+628111234567"),
        ("8111234567", "+628111234567"),
        ("(0811) 123.4567", "+628111234567"),
        ("  08111234567\n", "+628111234567"),
        ("+62 0811 1234567", "+628111234567"),
        ("0857-1234-5678", "+6285712345678"),
    ],
)
def test_a_number_has_one_form_however_it_is_written(text: str, number: str) -> None:
    assert parse_msisdn(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "021 5551234",  # a landline in Jakarta
        "+62 21 5551234",
        "+1 202 555 0123",
        "+60 12 345 6789",
        "0811",
        "08111234567890123",
        "+6281",
        "+",
        "",
        "   ",
        "garbage",
        "0811ABCDEFG",
        "0811-CALL-NOW",
        "0811123456 ext 5",
        "tel:+628111234567",
        "٠٨١١١٢٣٤٥٦٧",
        "0811\x001234567",
        "0811123\u20284567",
        "' OR 1=1 --",
        "0" * 33,
        "110",
    ],
)
def test_what_is_no_mobile_number_of_indonesia_is_refused(text: str) -> None:
    with pytest.raises(InvalidMsisdn) as refused:
        parse_msisdn(text)
    assert refused.value.code == "INVALID_MSISDN"
    # It ends in an answer, maybe in a log: without the number.
    assert not text.strip() or text.strip() not in str(refused.value)


@pytest.mark.parametrize("prefixes", [("811",), ("0811",), ("0857", "811"), ("81",)])
def test_an_operator_that_is_served(prefixes: tuple[str, ...]) -> None:
    assert parse_msisdn("08111234567", prefixes) == "+628111234567"


@pytest.mark.parametrize("prefixes", [("812",), ("0857", "856"), ("8112",)])
def test_an_operator_that_is_not_served(prefixes: tuple[str, ...]) -> None:
    with pytest.raises(InvalidMsisdn):
        parse_msisdn("08111234567", prefixes)


@given(st.text(max_size=40))
def test_whatever_is_sent_is_a_number_or_refused(text: str) -> None:
    try:
        number = parse_msisdn(text)
    except InvalidMsisdn:
        return
    assert number.startswith("+628")
    assert number[1:].isdecimal()
    assert number.isascii()
    assert parse_msisdn(number) == number


@pytest.mark.parametrize(
    ("text", "plate"),
    [
        ("B 1234 XYZ", "B 1234 XYZ"),
        ("b1234xyz", "B 1234 XYZ"),
        (" b-1234-xyz ", "B 1234 XYZ"),
        ("AB 1 C", "AB 1 C"),
        ("B 1", "B 1"),
        ("dk 777 q", "DK 777 Q"),
        ("B 9999 ZZZ", "B 9999 ZZZ"),
    ],
)
def test_a_plate_has_one_form_however_it_is_written(text: str, plate: str) -> None:
    assert parse_plate(text) == plate
    assert parse_plate(plate) == plate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "1234",
        "1234 XYZ",
        "B 12345 X",
        "B 0 X",
        "B 0123 XYZ",  # the same plate as 123 to whoever reads it
        "BBB 1 A",
        "B 1 ABCD",
        "B 1234  XYZ",
        "B\t1 A",
        "ß 1 A",
        "В 1234 XYZ",  # noqa: RUF001 - a Cyrillic letter
        "B ١٢ A",
        "B 1234 XYZ; DROP TABLE drivers",
        "B-12-34-X",
    ],
)
def test_what_is_no_plate_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_plate(text)
