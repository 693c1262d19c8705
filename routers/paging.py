"""Lists over HTTP: a page is the answer, and its headers say what lies beyond it."""

from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response

from config.settings import Settings
from models.base import CursorQuery
from services.cursors import Page

T = TypeVar("T")
_LINK = {
    "description": 'While there is more: the next page, `rel="next"` (RFC 8288).',
    "schema": {"type": "string"},
}
_TOTAL = {
    "description": "With `total=true`: how many feeds there are.",
    "schema": {"type": "integer"},
}
# What `Pager.answer` sets, as a route's OpenAPI entry shows it.
PAGED: dict[int | str, dict[str, Any]] = {200: {"headers": {"Link": _LINK}}}
COUNTED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"Link": _LINK, "X-Total-Count": _TOTAL}}
}


class Pager:
    """Answers one request for a list."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response

    def answer(self, page: Page[T]) -> list[T]:
        """Give a page's items; its headers get the next page's URL, and the total if counted."""
        headers = self._response.headers
        if page.next is not None:
            url, parameters = self._request.url, self._request.query_params
            kept = {k: v for k, v in parameters.items() if k not in {"skip", "cursor"}}
            query = urlencode(kept | {"cursor": page.next.encode()})
            settings: Settings = self._request.app.state.settings
            headers["Link"] = f'<{settings.base_url}{url.path}?{query}>; rel="next"'
        if page.total is not None:
            headers["X-Total-Count"] = str(page.total)
        return page.items


async def _pager(request: Request, response: Response) -> Pager:
    return Pager(request, response)


Paging = Annotated[Pager, Depends(_pager)]
PageQuery = Annotated[CursorQuery, Query()]
