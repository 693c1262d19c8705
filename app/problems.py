"""Every error, whatever raised it, becomes one shape: RFC 9457's `application/problem+json`."""

import json
from collections.abc import Iterable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.problem import Problem, ProblemError
from routers.problems import MEDIA_TYPE
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    InternalError,
    InvalidInput,
    MalformedBody,
    MethodNotAllowed,
    NotAuthenticated,
    Refusal,
    RouteNotFound,
)

log = structlog.get_logger()
WHOLE = ""  # The JSON Pointer to all of the input.
# A deadlock, a conflict; a statement, a wait for a lock or a transaction that took too long
# (PostgreSQL, appendix A): the same may well work later.
_FOR_NOW = {"40P01", "40001", "57014", "55P03", "25P03"}
_BY_STATUS: dict[int, type[Refusal]] = {
    400: MalformedBody,
    404: RouteNotFound,
    405: MethodNotAllowed,
    413: ContentTooLarge,
}


def answer(
    scope: Scope, refusal: Refusal, errors: Iterable[ProblemError] | None = None
) -> Response:
    """The response for a refusal; `errors` names each fault of the input (422)."""
    if errors is None and (refusal.pointer is not None or refusal.status == InvalidInput.status):
        errors = [ProblemError(pointer=refusal.pointer or WHOLE, detail=refusal.detail)]
    problem = Problem(
        type=refusal.type(),
        title=refusal.title(),
        status=refusal.status,
        detail=refusal.detail,
        instance=scope.get("state", {}).get("request_id", ""),
        errors=list(errors) if errors is not None else None,
    )
    headers = {}
    if refusal.status == NotAuthenticated.status:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    # Half a surrogate pair, quoted from the input, is no UTF-8; it must not fail the answer.
    body = json.dumps(
        problem.model_dump(exclude_none=True), ensure_ascii=False, separators=(",", ":")
    ).encode(errors="replace")
    return Response(body, int(refusal.status), headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make the application answer every error it knows as a problem."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return answer(request.scope, refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [_fault(e) for e in error.errors()]
        first = f"{faults[0].pointer or 'The body'}: {faults[0].detail}"
        return answer(request.scope, InvalidInput(first), faults)

    @app.exception_handler(HTTPException)
    async def refused_by_framework(request: Request, error: HTTPException) -> Response:
        kind = _BY_STATUS.get(error.status_code, InternalError)
        # For a body that cannot be parsed it says why; elsewhere no more than the status.
        why = _cause(error) if kind is MalformedBody else None
        response = answer(request.scope, kind(why))
        response.headers.update(error.headers or {})
        if kind is MethodNotAllowed:
            response.headers["Allow"] = _allowed(request) or response.headers.get("Allow", "GET")
        return response

    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeout)
    @app.exception_handler(TimeoutError)
    async def unreachable(request: Request, error: Exception) -> Response:
        # Else a statement was wrong.
        if isinstance(error, DBAPIError) and not (
            isinstance(error, OperationalError)
            or error.connection_invalidated
            or getattr(error.orig, "sqlstate", None) in _FOR_NOW
        ):
            raise error
        log.error("the database cannot be reached", error=str(error))
        return answer(request.scope, DatabaseUnavailable())


def _allowed(request: Request) -> str:
    """The methods of a path; the framework names those of the first route that has the path."""
    path = getattr(request.scope.get("route"), "path_format", "")
    return ", ".join(request.app.openapi()["paths"].get(path, ())).upper()


def _cause(error: HTTPException) -> str:
    cause = error.detail.rstrip(".")
    return f"{MalformedBody.default.rstrip('.')}: {cause[:1].lower()}{cause[1:]}."


def _fault(error: dict[str, Any]) -> ProblemError:
    # The first part of a location says which part of the request it is in, not where in there.
    path: tuple[Any, ...] = error["loc"][1:]
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        path, message = path[:0], f"No JSON from character {path[0]} on: {error['ctx']['error']}"
    elif error["type"] == "extra_forbidden":
        message = "there is no such parameter"
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in path]
    pointer = "".join("/" + part for part in parts)[:200]
    return ProblemError(pointer=pointer, detail=f"{message[:1].upper()}{message[1:]}.")


class LastResort:
    """Pure ASGI, around all that may fail: no error leaves as anything but a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = replaced = False

        async def watched(message: Message) -> None:
            nonlocal started, replaced
            started = True
            if message["type"] == "http.response.start" and message["status"] == 413:
                # The body limit of the framework answers in plain text.
                replaced = (b"content-type", MEDIA_TYPE.encode()) not in message["headers"]
                if replaced:
                    await answer(scope, ContentTooLarge())(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            log.exception("unhandled error", path=scope["path"])
            if started:
                raise  # too late for an answer; the server cuts the connection
            await answer(scope, InternalError())(scope, receive, send)
