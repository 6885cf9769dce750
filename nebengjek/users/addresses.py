"""E-mail addresses, parsed at the edge."""

from nebengjek.errors import Invalid


class InvalidEmail(Invalid):
    """No address that mail servers everywhere take; says what is wrong with it."""

    code = "INVALID_EMAIL"


def parse_email(text: str) -> str:
    """``siti@example.org``: as typed before the @, the domain in lower case and ASCII (``xn--…``).

    An address and nothing else: no display name, no quotes, no letters beyond ASCII before the @. That the domain
    exists is not asked. Raises InvalidEmail.
    """
    # Its tables of the world's letters cost a start 40 ms, and few requests bring an address.
    from email_validator import EmailNotValidError, validate_email

    try:
        address = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True)
    except EmailNotValidError as error:
        raise InvalidEmail(f"email: {error}") from None
    assert address.ascii_email is not None
    return address.ascii_email
