"""The two pages that mails link to, for boards that have none of their own: a form each.

The token is behind the #, which a browser sends to nobody; a script posts it when a person presses
the button, so that a mail scanner that opens links uses none up.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def add_pages(app: FastAPI) -> None:
    """Serve /account/reset and /account/verify."""
    app.mount("/account/assets", StaticFiles(directory=_FOLDER / "assets"))

    @app.get("/account/reset", include_in_schema=False)
    async def reset_page() -> FileResponse:
        return FileResponse(_FOLDER / "reset.html", headers=_HEADERS)

    @app.get("/account/verify", include_in_schema=False)
    async def verify_page() -> FileResponse:
        return FileResponse(_FOLDER / "verify.html", headers=_HEADERS)
