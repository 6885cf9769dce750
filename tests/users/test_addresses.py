"""E-mail addresses: which are taken and how they are kept, which are refused and why."""

import pytest

from nebengjek.users.addresses import InvalidEmail, parse_email

LONG = "@" + ".".join(["b" * 60] * 3)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("siti@example.org", "siti@example.org"),
        ("Siti.Aminah+ride@Example.ORG", "Siti.Aminah+ride@example.org"),
        ("o'brien_1/x=y@mail.example.co.id", "o'brien_1/x=y@mail.example.co.id"),
        ("a@b.co", "a@b.co"),
        ("siti@bücher.example", "siti@xn--bcher-kva.example"),
        ("siti@xn--bcher-kva.example", "siti@xn--bcher-kva.example"),
        ("siti@пример.рф", "siti@xn--e1afmkfd.xn--p1ai"),
        ("a" * 64 + "@example.org", "a" * 64 + "@example.org"),
        ("a" * 64 + LONG + ".org", "a" * 64 + LONG + ".org"),
    ],
)
def test_an_address_is_kept_as_every_mail_server_knows_it(text: str, kept: str) -> None:
    assert parse_email(text) == kept


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "@-sign"),
        ("siti", "must have an @-sign"),
        ("@example.org", "before the @-sign"),
        ("siti@", "after the @-sign"),
        ("siti@@example.org", "invalid characters: '@'"),
        ("siti@localhost", "period"),
        ("siti@example..org", "two periods"),
        ("siti@.example.org", "period"),
        ("siti@example.org.", "end with a period"),
        (".siti@example.org", "start with a period"),
        ("siti..a@example.org", "two periods"),
        ("siti@-example.org", "hyphen"),
        ("siti@exa_mple.org", "'_'"),
        ("siti a@example.org", "SPACE"),
        (" siti@example.org", "SPACE"),
        # What would be a header of its own, or a second recipient.
        ("siti@example.org\r\nBcc: all@example.org", "U+000A"),
        ("siti\n@example.org", "U+000A"),
        ("siti@example.org\n", "U+000A"),
        ("siti@example.org\x00", "U+0000"),
        ("siti@example.org, budi@example.org", "','"),
        ("siti@example.org;budi@example.org", "';'"),
        ("siti@exam\u200bple.org", "ZERO WIDTH SPACE"),
        ("siti\uff20example.org", "full-width"),
        ("Siti <siti@example.org>", "display name"),
        ("<siti@example.org>", "angle brackets"),
        ('"siti"@example.org', "Quoting"),
        ('"siti@home"@example.org', "Quoting"),
        ("siti(at home)@example.org", "'('"),
        ("siti@[127.0.0.1]", "bracketed IP"),
        ("siti@1.2.3.4", "top-level domain"),
        ("siti@example.test", "special-use"),
        ("sitï@example.org", "nternationalized"),
        ("a" * 65 + "@example.org", "too long before the @-sign"),
        ("a" * 64 + LONG + ".orgs.id", "too long"),
        ("a@" + "b" * 64 + ".org", "so many characters"),
        ("a@" + "ü" * 60 + ".org", "too long"),
    ],
)
def test_what_is_no_address_is_refused_with_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(InvalidEmail) as refused:
        parse_email(text)
    assert why in refused.value.message
    assert refused.value.code == "INVALID_EMAIL"
    # It may come to stand in somebody's log, without the address.
    assert "example.org" not in refused.value.message
