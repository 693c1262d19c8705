"""The OpenAPI document, whole and true, and Swagger UI, from files that are shipped."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import iter_route_contexts
from starlette.staticfiles import StaticFiles

from app import etags
from app.headers import of_swagger_ui
from config.settings import Settings
from models.problem import Problem
from routers.dependencies import verified
from routers.idempotency import HEADER
from routers.problems import add as add_problems
from routers.problems import refuses
from routers.rates import class_of
from services.errors import (
    EmailNotVerified,
    IdempotencyKeyReused,
    Overloaded,
    Refusal,
    RequestOutstanding,
    RequestTimeout,
    TookTooLong,
    TooManyConnections,
    TooManyRequests,
    UnknownHost,
)

# Lists that are as long as a feed's images at most.
_OF_IMAGES = {"images", "new_images", "image_ids", "target_image_urls", "alt"}


def add(app: FastAPI) -> None:
    """Add `/openapi.json` as it is described here, and pages that work with no internet access."""
    app.openapi = partial(_openapi, app, app.openapi)  # type: ignore[method-assign]
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        page = get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="Feedboard API",
            swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/assets/favicon-32x32.png",
            swagger_ui_parameters={
                "persistAuthorization": True,
                "tryItOutEnabled": True,
                "defaultModelsExpandDepth": 0,  # The list of schemas is there, but folded.
            },
        )
        page.headers["content-security-policy"] = of_swagger_ui(bytes(page.body))
        return page

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> RedirectResponse:
        # Browsers ask for it by themselves, for instance where an image is opened.
        root = request.scope.get("root_path", "").rstrip("/")
        return RedirectResponse(f"{root}/docs/assets/favicon-32x32.png")

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> RedirectResponse:
        return RedirectResponse(request.scope.get("root_path", "").rstrip("/") + "/docs")


def _openapi(app: FastAPI, generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's document, with what it does not know of: see the parts."""
    if app.openapi_schema is None:
        settings: Settings = app.state.settings
        document = generate()
        _list_problems(app, document, settings)
        _describe_shapes(document, settings)
        etags.describe(document)
        app.openapi_schema = document
    return app.openapi_schema


def _list_problems(app: FastAPI, document: dict[str, Any], settings: Settings) -> None:
    """List what is refused outside of routes, before or while one is asked."""
    guarded = {
        route.path_format
        for route in iter_route_contexts(app.routes)
        if any(
            guard.call is verified
            for guard in getattr(getattr(route, "dependant", None), "dependencies", ())
        )
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            kinds: list[type[Refusal]] = [TookTooLong, TooManyConnections]
            kinds += [RequestTimeout] if "requestBody" in operation else []
            kinds += [UnknownHost] if settings.hosts else []
            kinds += [TooManyRequests, Overloaded] if class_of(method.upper(), path) else []
            kinds += [EmailNotVerified] if path in guarded and method not in {"get", "head"} else []
            if any(given["name"] == HEADER for given in operation.get("parameters", ())):
                kinds += [IdempotencyKeyReused, RequestOutstanding]
            add_problems(operation["responses"], refuses(*kinds))


def _describe_shapes(document: dict[str, Any], settings: Settings) -> None:
    """Add the shape that all problems share, and what the settings limit."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for shape in schemas.values():
        properties = shape.get("properties", {})
        for field in _OF_IMAGES & properties.keys():
            if properties[field].get("type") == "array":
                properties[field]["maxItems"] = settings.max_images
    schemas["ImagePresign"]["properties"]["bytes"]["maximum"] = settings.max_image_bytes
