"""The HTTP side as an OpenAPI document at ``/schema``: what Litestar finds out by itself, and what all routes share.

All routes share how they refuse (``application/problem+json``) and who may ask: anybody (``opt={"public": True}``),
operators (below ``/admin``), else whoever has logged in.
"""

from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, Reference, SecurityScheme
from litestar.routes import HTTPRoute

from nebengjek.web import PROBLEM_TYPE, Problem

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
        path="/schema",
        render_plugins=[_Document(path=["/", "/openapi.json"])],
        components=Components(security_schemes=schemes),
        security=[{_BEARER: []}],
    )


class _Document(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        # The same dictionary at each request.
        if "Problem" not in openapi_schema["components"]["schemas"]:
            _complete(openapi_schema, request.app)
        return super().render(request, openapi_schema)


def _complete(document: dict[str, Any], app: Litestar) -> None:
    _, components = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    document["components"]["schemas"] |= components
    refused = {
        "description": "Refused, or not possible at present; the code says why.",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for route in app.routes:
        if not isinstance(route, HTTPRoute) or route.path_format not in document["paths"]:
            continue
        for method, (handler, _) in route.route_handler_map.items():
            operation = document["paths"][route.path_format].get(method.lower())
            if operation is None:
                continue
            operation["responses"].pop("400", None)
            operation["responses"]["default"] = refused
            if handler.opt.get("public"):
                operation["security"] = []
            elif route.path_format.startswith("/admin"):
                operation["security"] = [{_OPERATOR: []}]
