"""The `Idempotency-Key` header: a write that is sent again is answered again, and done once.

What a service keeps (`services/idempotency.py`) is what FastAPI would send, byte for byte.
"""

import asyncio
import hashlib
import hmac
import inspect
import re
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Request, Response, params
from fastapi.routing import APIRoute, serialize_response
from starlette.datastructures import FormData, UploadFile

from config.db import Sessions
from config.settings import Settings
from models.base import Versioned
from routers.conditions import etag
from routers.dependencies import reader_of
from services import idempotency
from services.errors import InvalidInput, Refusal
from services.idempotency import Answer, Claim

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
Endpoint = Callable[..., Awaitable[Any]]
# A structured field's string (RFC 9651, section 3.3.3), or its characters as they are.
PATTERN = r'^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-+\--:<-~]{1,255})$'
_Key = Annotated[
    str,
    Header(
        alias=HEADER,
        pattern=PATTERN,
        # And no example, which Swagger UI would send each time.
        description="A value of your own, new for each request (a UUID, say). Sent again with the "
        "same, the request is not carried out again, but answered as before, for 24 hours.",
    ),
]
# They are answers that the same request would not get once more.
_PASSING = {HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
# What, beside its content, makes a request another one.
_TELLING = ("if-match", "if-unmodified-since")


def keyed(endpoint: Endpoint) -> Endpoint:
    """Let a route of signed-in users take a key, which is the user's own."""
    return _keyed(endpoint, of_users=True)


def keyed_for_anybody(endpoint: Endpoint) -> Endpoint:
    """Let an open route take a key. Only who knows the whole request is given its answer again."""
    return _keyed(endpoint, of_users=False)


def _keyed(endpoint: Endpoint, *, of_users: bool) -> Endpoint:
    """Wrap an endpoint, which is called when all of its input has been found good.

    A service's session carries the claim; an endpoint without one has a parameter `claim`.
    """

    @wraps(endpoint)
    async def write(*, idempotency_key: str | None, keyed_request: Request, **values: Any) -> Any:
        if idempotency_key is None:
            return await endpoint(**values)
        found = await _claim(keyed_request, idempotency_key, of_users=of_users)
        if isinstance(found, Answer):
            return Response(found.body, found.status, found.headers | {REPLAYED: "true"})
        if "db" in values:
            idempotency.carry(values["db"], found)
        else:
            values["claim"] = found
        return await _attempt(keyed_request, found, endpoint(**values))

    signature = inspect.signature(endpoint)
    given = [it for it in signature.parameters.values() if it.name != "claim"]
    added = {"idempotency_key": _Key, "keyed_request": Request}
    given += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=kind,
            default=None if kind is _Key else inspect.Parameter.empty,
        )
        for name, kind in added.items()
    ]
    write.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
    return write


async def _attempt(request: Request, claim: Claim, writing: Awaitable[Any]) -> Any:
    """Carry the request out; if nothing was written, keep the refusal, or let go of the key."""
    settle = partial(idempotency.settle, request.app.state.sessions, claim)
    try:
        return await writing
    except Refusal as refusal:
        await settle(await _refused(request, refusal) if _lasts(refusal) else None)
        raise
    except BaseException:
        await settle(None)
        raise


def _lasts(refusal: Refusal) -> bool:
    passes = refusal.retry_after is not None or refusal.status in _PASSING
    return refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR and not passes


async def _refused(request: Request, refusal: Refusal) -> Answer:
    """A refusal as it is about to be sent."""
    handler: Any = request.app.exception_handlers[Refusal]
    response: Response = await handler(request, refusal)
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Answer(response.status_code, headers, bytes(response.body))


async def _claim(request: Request, header: str, *, of_users: bool) -> Claim | Answer:
    if len(request.headers.getlist(HEADER)) > 1:
        raise InvalidInput(f"The header {HEADER} came several times.", pointer=f"/{HEADER}")
    key = re.sub(r"\\(.)", r"\1", header[1:-1]) if header.startswith('"') else header
    user_id = (await reader_of(request)).id if of_users else None
    settings: Settings = request.app.state.settings
    sessions: Sessions = request.app.state.sessions
    digest = await _digest(request)
    found = await idempotency.claim(
        sessions,
        user_id=user_id,
        # A user's key is found again also when the secret is another by then.
        key_hash=_hash(user_id, key) if of_users else _signed(settings, key, digest),
        fingerprint=_signed(settings, "", digest),
    )
    return found if isinstance(found, Answer) else Claim(found, partial(_encoded, request))


def _hash(user_id: int | None, key: str) -> bytes:
    return hashlib.sha256(f"{user_id} {key}".encode()).digest()


def _signed(settings: Settings, key: str, digest: bytes) -> bytes:
    """What the database knows of a request: those hold passwords, which a bare hash gives away."""
    secret = settings.secret_key.get_secret_value() if settings.secret_key else ""
    return hmac.digest(secret.encode(), f"{HEADER} {key}\0".encode() + digest, "sha256")


async def _encoded(request: Request, read: Any) -> Answer:
    """What FastAPI makes of what an endpoint gives (`fastapi.routing.get_request_handler`)."""
    route: APIRoute = request.scope["route"]
    body = await serialize_response(
        field=route.response_field, response_content=read, dump_json=True
    )
    headers = {"content-type": "application/json"}
    if isinstance(read, Versioned):
        headers["etag"] = f'"{etag(body, read.version())}"'
    return Answer(route.status_code or 200, headers, body)


async def _digest(request: Request) -> bytes:
    """A hash of all that makes a request this one; of a form, of its parts, not their boundary."""
    told, scope = hashlib.sha256(), request.scope
    _tell(told, scope["method"], scope["path"], scope["query_string"])
    _tell(told, *(request.headers.get(name, "") for name in _TELLING))
    reads = scope["route"].body_field
    if reads is not None and isinstance(reads.field_info, params.Form):
        await asyncio.to_thread(_tell_form, told, await request.form())
    elif reads is not None:
        _tell(told, await request.body())
    return told.digest()


def _tell_form(told: Any, form: FormData) -> None:
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            value.file.seek(0)
            file: Any = value.file
            content = hashlib.file_digest(file, "sha256").digest()
            value.file.seek(0)
            _tell(told, name, value.filename or "", value.content_type or "", content)
        else:
            _tell(told, name, value)


def _tell(told: Any, *texts: str | bytes) -> None:
    """With their number and lengths, so that two lists never look alike."""
    told.update(len(texts).to_bytes(8))
    for text in texts:
        data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        told.update(len(data).to_bytes(8))
        told.update(data)
