"""The web page: static files that `make page` builds into `page/` here, and wheels carry."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict

BUILT = Path(__file__).parent / "page"

# Everything from here, nothing from elsewhere, no inline script. Libraries set styles on elements as they run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Cross-Origin-Opener-Policy": "same-origin"}
_NOT_BUILT = (
    "Plaudit's web page is not built here. In a checkout of the repository: `make page` (it needs Node), then start "
    "the gateway again; wheels carry it. The API works without it: see /v1/openapi.json.\n"
)


class About(BaseModel):
    """What the page cannot know otherwise."""

    model_config = ConfigDict(extra="forbid")

    aspects: list[str]
    """What replies are voted on for; a vote that names none means the first."""
    loop: bool
    """Whether this gateway shows the loop."""


class _Files(StaticFiles):
    """Files whose names hold a hash of what is in them: once fetched, never asked for again."""

    def file_response(self, *arguments: object, **named: object) -> Response:
        response = super().file_response(*arguments, **named)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def serve(app: FastAPI, directory: Path = BUILT) -> None:
    """Serve `/`, `/assets/…` and the other files that stand in `directory` itself."""
    if (directory / "assets").is_dir():
        app.mount("/assets", _Files(directory=directory / "assets"))

    async def index(request: Request) -> Response:
        file = directory / "index.html"
        if not file.is_file():
            return PlainTextResponse(_NOT_BUILT, 404, {"Cache-Control": "no-store"})
        return FileResponse(file, headers={**_HEADERS, "Cache-Control": "no-cache"})

    app.router.add_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    # Icons and the like: the names are those of the build, no path of the request is joined to anything.
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        if file.is_file() and file.name != "index.html":
            app.router.add_route(f"/{file.name}", _file(file), methods=["GET", "HEAD"], include_in_schema=False)


def _file(file: Path):  # type: ignore[no-untyped-def]
    async def serve(request: Request) -> Response:
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    return serve
