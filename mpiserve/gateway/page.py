"""The page `/docs`: the services of the job, and a form to try one.

Its files are the same for everybody and say nothing of the job, so they need no token. The page
asks for the token, keeps it in its memory, and asks the routes that all clients ask.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page_files"
FILES = {
    "/docs": ("page.html", "text/html"),
    "/docs/page.js": ("page.js", "text/javascript"),
    "/docs/page.css": ("page.css", "text/css"),
}
# Nothing from elsewhere, nothing inline, no frames: what a service answers can run no script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    """Answer with a file of the page."""
    name, kind = FILES[request.url.path]
    return Response((FOLDER / name).read_bytes(), media_type=kind, headers=HEADERS)


def routes() -> list[Route]:
    """Make the routes."""
    return [Route(path, page, methods=["GET"]) for path in FILES]
