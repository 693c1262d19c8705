"""The problems that a route can give, as its OpenAPI entry lists them, and a page for each."""

from copy import deepcopy
from typing import Any

from fastapi import APIRouter

from services.errors import InvalidInput, Refusal, RouteNotFound

MEDIA_TYPE = "application/problem+json"
KINDS = {kind.type(): kind for kind in Refusal.__subclasses__()}
router = APIRouter(prefix="/problems", include_in_schema=False)


@router.get("/{name}")
async def explain_problem(name: str) -> dict[str, Any]:
    """What a problem's `type` leads to: the kind of problem, in general."""
    kind = KINDS.get(f"/problems/{name}")
    if kind is None:
        raise RouteNotFound
    return {
        "type": kind.type(),
        "title": kind.title(),
        "status": kind.status,
        "description": " ".join((kind.__doc__ or "").split()),
    }


def refuses(*kinds: type[Refusal]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can refuse in these ways, with an example of each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = responses.setdefault(
            int(kind.status),
            {
                "description": kind.status.phrase,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "examples": {},
                    }
                },
            },
        )
        value: dict[str, Any] = {
            "type": kind.type(),
            "title": kind.title(),
            "status": int(kind.status),
            "detail": kind.default,
            "instance": "0199d4a2-7c1e-7b3f-9a54-3f1c2d6e8b90",
        }
        if kind.status == InvalidInput.status:
            value["errors"] = [{"pointer": "/title", "detail": kind.default}]
        entry["content"][MEDIA_TYPE]["examples"][kind.title()] = {
            "summary": (kind.__doc__ or "").splitlines()[0],
            "value": value,
        }
    return responses


def add(responses: dict[str, Any], more: dict[int | str, dict[str, Any]]) -> None:
    """Add what `refuses` gave to a route's responses in the OpenAPI document."""
    for status, response in deepcopy(more).items():
        listed = responses.setdefault(str(status), response)
        examples = response["content"][MEDIA_TYPE]["examples"]
        listed["content"][MEDIA_TYPE].setdefault("examples", {}).update(examples)
