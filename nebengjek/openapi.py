"""The HTTP side as an OpenAPI document at ``/schema``: what Litestar finds out by itself, and what all routes share.

All routes share how they refuse (``application/problem+json``) and who may ask: anybody (``opt={"public": True}``),
operators (below ``/admin``), else whoever has logged in.
"""

from typing import Any

import msgspec
from litestar import Litestar, Request, Response, Router
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, Reference, SecurityScheme
from litestar.routes import HTTPRoute

from nebengjek.web import ADMIN_PATH, PROBLEM_TYPE, Problem

_BEARER, _OPERATOR = "bearer", "operator"


def openapi() -> OpenAPIConfig:
    """For ``Litestar(openapi_config=...)``. The document is made when somebody asks for it first."""
    schemes: dict[str, SecurityScheme | Reference] = {
        _BEARER: SecurityScheme(type="http", scheme="bearer", bearer_format="JWT"),
        _OPERATOR: SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header"),
    }
    return OpenAPIConfig(
        title="NebengJek",
        version="1",
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, opt={"public": True}, after_request=_say_not_found
        ),
        render_plugins=[_Document(path=["/", "/openapi.json"])],
        components=Components(security_schemes=schemes),
        security=[{_BEARER: []}],
    )


def _say_not_found(response: Response[Any]) -> Response[Any]:
    """Litestar has a page of its own for what is not below ``/schema``; ours is the problem that all routes answer."""
    if response.status_code == 404:
        raise NotFoundException
    return response


class _Document(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        # The same dictionary at each request.
        if "Problem" not in openapi_schema["components"]["schemas"]:
            _complete(openapi_schema, request.app)
        return super().render(request, openapi_schema)


def _complete(document: dict[str, Any], app: Litestar) -> None:
    _, components = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    document["components"]["schemas"] |= components
    for route in app.routes:
        if not isinstance(route, HTTPRoute) or route.path_format not in document["paths"]:
            continue
        for method, (handler, _) in route.route_handler_map.items():
            operation = document["paths"][route.path_format].get(method.lower())
            if operation is None:
                continue
            public = bool(handler.opt.get("public"))
            if public:
                operation["security"] = []
            elif route.path_format.startswith(ADMIN_PATH):
                operation["security"] = [{_OPERATOR: []}]
            _say_refusals(operation, public=public)
            _say_whether_a_body_is_needed(operation)


def _say_refusals(operation: dict[str, Any], *, public: bool) -> None:
    """A 5xx is no promise, but for 503: whoever needs what is away is told to come again."""
    responses = operation["responses"]
    responses.pop("400", None)
    refused = {"401": not public, "413": "requestBody" in operation, "415": "requestBody" in operation}
    for status, description in _REFUSALS.items():
        if refused.get(status, True):
            responses.setdefault(status, {"description": description, "content": _PROBLEM})


def _say_whether_a_body_is_needed(operation: dict[str, Any]) -> None:
    """Litestar calls every body required, also one that may be null, which is what no body is."""
    body = operation.get("requestBody", {})
    for content in body.get("content", {}).values():
        if {"type": "null"} in content["schema"].get("oneOf", ()):
            body["required"] = False


_PROBLEM = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_REFUSALS = {
    "401": "Who is asking is not known.",
    "413": "More bytes than are taken.",
    "415": "A body that is not JSON.",
    "4XX": "Refused; the code says why.",
    "503": "Something that is needed does not answer; the same request may pass later.",
}
