"""What a refusal over HTTP looks like, for every test that expects one."""

from typing import Any

import httpx


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """It is this problem, as RFC 9457 wants it; returns its body."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (status, code), response.text
    assert problem["status"] == status
    assert problem.get("type", "about:blank") == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    return problem
