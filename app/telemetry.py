"""OpenTelemetry: FastAPI's own, switched on by the standard variables, with spans of SQL and S3.

See https://opentelemetry.io/docs/specs/otel/protocol/exporter/ for what they are called.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
from starlette.types import Scope

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ENDPOINTS = _ENDPOINT, *(f"OTEL_EXPORTER_OTLP_{it}_ENDPOINT" for it in ("TRACES", "METRICS"))
# FastAPI's log records say of a fault what our own log lines do.
CONFIG: "TelemetryConfig" = {"auto_configure": True, "logs": False}


def wanted() -> bool:
    """Whether the environment names a collector."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(os.environ.get(name) for name in _ENDPOINTS)


def instrument() -> None:
    """Give each statement and each request to the store a span, in this process, from now on."""
    from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

    os.environ.setdefault("OTEL_SERVICE_NAME", "feedboard")
    # Seconds; at 10, the usual, a collector that is not there holds up the end of us for 18.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    # The settled names of attributes; the libraries' own default is what was before.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
    # SQLAlchemy's statements go through asyncpg, too; values are left out.
    AsyncPGInstrumentor().instrument()  # type: ignore[no-untyped-call]
    # Only aioboto3 uses it. Addresses are signed by their query.
    AioHttpClientInstrumentor().instrument(
        url_filter=lambda url: str(url.with_query(None)),
        request_hook=lambda span, request: span.update_name(f"S3 {request.method}"),
    )


def name_route(scope: Scope, route: str) -> None:
    """Tell FastAPI's telemetry by which route a request is answered that no router sees."""
    request: Any = scope.get("fastapi.telemetry")
    if request is not None:
        from opentelemetry import trace

        request.route = route
        span = trace.get_current_span()
        span.set_attribute("http.route", route)
        span.update_name(f"{scope['method']} {route}")


def add_ids(
    logger: Any, method: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A log line's trace and span, as hexadecimal digits (W3C Trace Context, 3.2.2)."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        entry["trace_id"] = trace.format_trace_id(context.trace_id)
        entry["span_id"] = trace.format_span_id(context.span_id)
    return entry


@contextmanager
def unobserved() -> Iterator[None]:
    """No spans for what is begun in here: periodic work, which nobody asked for."""
    if not wanted():
        yield
        return
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation():
        yield
