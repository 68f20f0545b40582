"""A run, or a folder of runs, live in a browser: the report's page, below a part that says what goes on.

It is read-only, and for whoever knows the token of its address on this machine. Folders are strangers', as for a
report: nothing is written, no lock is taken, no link is followed, and no file is handed out as it is.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from genius_lite.errors import UserError
from genius_lite.report.live import EVERY, MARK, Look, Report, beside, changed, entries, standing
from genius_lite.report.page import fill, page, policy
from genius_lite.report.status import Status
from genius_lite.rundir import folder

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
"""What a browser may call this machine; a stranger's name that leads here (DNS rebinding) is none of them."""
_LISTED = 200  # runs of a folder that are shown, those last
_PAGES, _IDLE = 4, 300.0  # reports that are kept, and seconds for which more are: a tab that nobody sees asks rarely
_OF_WORK = (folder.RECIPE, folder.PROGRESS)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(path: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the page of a run, or of each run of a folder, on this machine until Ctrl-C; `say` is told the address.

    Port 0 stands for one that is free.

    Raises:
        UserError: there is no run, the port is not to be had, or a package is missing.
        KeyboardInterrupt: Ctrl-C.
    """
    with listening(path, port) as (server, here, address):
        say(address)
        server.run([here])


@contextmanager
def listening(path: Path, port: int) -> Iterator[tuple[uvicorn.Server, socket.socket, str]]:
    """Hold a port while the block lasts; yields a server that answers at it once it is run, and its address."""
    try:
        import uvicorn

        token = secrets.token_urlsafe(24)
        app = application(path, token)
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise UserError("watch --web needs packages: pip install 'starlette>=1.0' 'uvicorn>=0.40'") from None
    with socket.socket() as here:
        if os.name == "posix":  # elsewhere it would let two programs have one port
            here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            here.bind((HOST, port))
            here.listen()  # so that whoever is told the address is not refused
        except (OSError, OverflowError) as e:
            why = e.strerror if isinstance(e, OSError) else "there is no such port"
            raise UserError(f"port {port} is not to be had ({why}); name another one, or leave --port out") from None
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False}
        quiet |= {"server_header": False, "proxy_headers": False}
        config = uvicorn.Config(app, lifespan="off", ws="none", http="h11", timeout_graceful_shutdown=1, **quiet)
        yield uvicorn.Server(config), here, f"http://{HOST}:{here.getsockname()[1]}/{token}/"


def application(path: Path, token: str) -> Starlette:
    """The server's answers: `/TOKEN/` leads to the run that was last at work, `/TOKEN/NAME/` is a run's page.

    Raises:
        UserError: the folder is no run, and holds none.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import RedirectResponse, Response
    from starlette.routing import Route

    shelf = _Shelf(path)
    if not shelf.runs():
        raise UserError(f"{path} is no run folder, and none is in it; name the `out` of a recipe")

    # Plain functions, which starlette runs in threads.
    def root(request: Request) -> Response:
        for name in shelf.runs():
            here = "" if request.url.path.endswith("/") else f"{token}/"  # an address that was copied without its end
            return RedirectResponse(f"{here}{quote(name, safe='')}/")
        raise HTTPException(404)

    def whole(request: Request) -> Response:
        return html(shelf.page(**named(request)))

    def live(request: Request) -> Response:
        return html(shelf.live(**named(request)))

    def html(text: str) -> Response:
        allowed = {"Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'"}
        return Response(text, headers=allowed, media_type="text/html")

    def named(request: Request) -> dict[str, Any]:
        name, runs = request.path_params["run"], shelf.runs()
        if name not in runs:
            raise HTTPException(404)
        return {"name": name, "runs": runs}

    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """Answer GET and HEAD below the token; to who does not know it, nothing is there."""
        given = request.scope["path"].removeprefix("/").partition("/")[0].encode()
        if not secrets.compare_digest(given, token.encode()):
            response = Response("Not Found", 404)
        elif request.method not in ("GET", "HEAD"):
            response = Response("Method Not Allowed", 405, {"Allow": "GET, HEAD"})
        else:
            response = await answer(request)
        response.headers.update(_HEADERS)
        return response

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(_NAMES), www_redirect=False)
    app = Starlette(
        routes=[Route("/{_}", root), Route("/{_}/", root), Route("/{_}/{run}/", whole), Route("/{_}/{run}/live", live)],
        middleware=[hosts, Middleware(BaseHTTPMiddleware, dispatch=guarded)],
    )
    app.router.redirect_slashes = False
    return app


class _Shelf:
    """A folder of runs, or the one run that it is, by the names that addresses have for them."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._looks: dict[str, Look] = {}
        self._reports: dict[str, tuple[Report, float]] = {}  # and when it was asked for
        self._found: dict[str, Path] = {}
        self._scanned = -math.inf

    def runs(self) -> dict[str, Path]:
        """All runs, those first that were last at work."""
        with self._lock:
            if (now := time.monotonic()) - self._scanned >= EVERY:
                self._scanned = now
                found = [(self.path.resolve().name, self.path)]
                if not changed(self.path / folder.RECIPE):
                    inside = (e for e in entries(self.path) if e.is_dir(follow_symlinks=False))
                    found = [(e.name, Path(e.path)) for e in inside if changed(Path(e.path, folder.RECIPE))]
                found.sort(key=lambda run: max(changed(run[1] / n) for n in _OF_WORK), reverse=True)
                self._found = {name.encode("utf-8", "backslashreplace").decode(): path for name, path in found}
            return self._found

    def page(self, name: str, runs: dict[str, Path]) -> str:
        part = Markup(self.live(name, runs))
        made = self._report(name, runs[name]).page
        return made.replace(MARK, part, 1) if made else page(None, part, name)

    def live(self, name: str, runs: dict[str, Path]) -> str:
        """The part of it that says what goes on."""
        report = self._report(name, runs[name])
        report.bring_up_to_date()
        shown = dict.fromkeys([*list(runs)[:_LISTED], name]) if len(runs) > 1 else {}
        return fill(
            "live.html",
            report=report.version,
            problem=report.problem,
            others=[beside(other, self._look(other, runs[other]), here=other == name) for other in shown],
            left_out=len(runs) - len(shown),
            **standing(self._look(name, runs[name])),
        )

    def _look(self, name: str, path: Path) -> Status | str:
        with self._lock:
            found = self._looks.setdefault(name, Look(path))
        return found()

    def _report(self, name: str, path: Path) -> Report:
        with self._lock:
            report, _ = self._reports.pop(name, None) or (Report(path), 0.0)
            self._reports[name] = report, (now := time.monotonic())  # the last one
            for other, (_, asked) in list(self._reports.items())[:-_PAGES]:
                if now - asked > _IDLE:  # every page that is open asks for its own
                    del self._reports[other]
            return report
