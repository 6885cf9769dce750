"""The gateway that carries one-time codes to phones: one HTTP request a message."""

import ssl

import httpx

from nebengjek.errors import Unavailable


class HttpSms:
    """POST ``{"to": "+62…", "text": …, "sender": …}`` to ``url``, with ``token`` as bearer; any 2xx means taken."""

    def __init__(self, url: str, *, token: str | None, sender: str, timeout: float) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._sender = sender
        self._timeout = timeout
        # Loading the certificates takes longer than the request: once, not per message.
        self._tls = ssl.create_default_context()

    async def send(self, msisdn: str, text: str, topic: str | None = None) -> None:
        """Raises Unavailable("sms") when the gateway does not take it: nothing is known of the number by then."""
        body = {"to": msisdn, "text": text, "sender": self._sender}
        try:
            async with httpx.AsyncClient(timeout=self._timeout, verify=self._tls, headers=self._headers) as http:
                answer = await http.post(self._url, json=body)
        except httpx.HTTPError as error:
            # Not its text: it may quote the request.
            raise Unavailable("sms", f"the SMS gateway does not answer ({type(error).__name__})") from None
        if not answer.is_success:
            raise Unavailable("sms", f"the SMS gateway says {answer.status_code}")
