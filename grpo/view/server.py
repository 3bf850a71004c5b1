"""`grpo view`: a page that shows runs. By default only this machine can open the page; a network needs a token.

A policy wrote the data, so the server does not trust it. In the JSON that the server sends, every invisible
character is replaced by its name. The page inserts data only as text. The content security policy allows only scripts,
styles and connections of this server. The server refuses requests that name another host or come from another site, so
no other web site can read the page. A request cannot name a file path, and every number in a request has a limit. The
size of the runs limits the cost of a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response

from grpo.addresses import is_loopback
from grpo.view import curves
from grpo.view import learned as step_comparison
from grpo.view import payloads as view_data
from grpo.view.columns import STATUSES
from grpo.view.index import Filter, Order
from grpo.view.page import ASSETS, page
from grpo.view.runs import RunData
from grpo.visible import visible

# Seconds between two reads of the run folders. The folders are read again because a run may still be active.
_REFRESH_S = 2.0
_MOST_ROWS = 500
# Longest query, in characters. A request for every chart of a run with 400 metrics needs half of this length.
_LONGEST_QUERY = 32 * 1024
# The largest integer that every JSON reader represents exactly. All step, token and group numbers are at most
# this integer.
_LARGEST = 2**53
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_Source = Literal["training", "held-out"]
_Step = Annotated[int, Query(ge=0, le=_LARGEST)]
_Limit = Annotated[int | None, Query(ge=-_LARGEST, le=_LARGEST)]
_Run = Annotated[int, Query(ge=-_LARGEST, le=_LARGEST)]
_Reward = Annotated[float | None, Query(allow_inf_nan=False)]


def make_app(runs: Sequence[RunData], *, hosts: Sequence[str] = (), token: str | None = None) -> FastAPI:
    """Make the application that serves the page of some runs.

    Args:
        runs: runs in the order of the page.
        hosts: host names that requests may use, besides `localhost` and addresses.
        token: secret that a browser must send; if None, everybody who can reach the server may read the page.
    """
    # FastAPI's documentation pages would load scripts from other sites, so these pages are switched off.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # The middleware that is added last runs first. So foreign requests are refused before the token is checked.
    if token is not None:
        _ask_for_token(app, token)
    _refuse_strangers(app, hosts)
    _tell_problems(app)
    _serve_page(app)
    _serve_runs(app, runs)
    _serve_single_run(app, runs)
    return app


def _refuse_strangers(app: FastAPI, hosts: Sequence[str]) -> None:
    """Refuse requests that name another host or come from another site. Send security headers with every answer."""

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response: Response
        if not is_own_host(request.headers.get("host", ""), hosts):
            response = Response("this page accepts localhost or an address; allow another host name with --host", 421)
        elif request.url.path != "/" and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            response = Response("another site may not read this page's data", 403)
        elif len(request.url.query) > _LONGEST_QUERY:
            response = _json({"detail": f"a query may have at most {_LONGEST_QUERY:,} characters"}, 414)
        else:
            response = await answer(request)
        response.headers.update(_HEADERS)
        return response


def _ask_for_token(app: FastAPI, token: str) -> None:
    """Answer only browsers that open the page with `?token=`. Later requests send a cookie instead of the token."""
    # Browsers send a cookie to all ports of a host. So its name depends on the token, and two pages do not share it.
    cookie = f"grpo-view-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    def is_token(given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())

    @app.middleware("http")
    async def ask(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if is_token(request.cookies.get(cookie, "")):
            return await answer(request)
        if request.url.path != "/" or not is_token(request.query_params.get("token", "")):
            return _json({"detail": "open the address that `grpo view` printed: it ends in a token"}, 401)
        # Redirect, so that the token does not stay in the browser's address bar and history.
        response = Response(status_code=303, headers={"Location": "/"})
        response.set_cookie(cookie, token, httponly=True, samesite="lax")
        return response


def _tell_problems(app: FastAPI) -> None:
    """If a request causes an error, answer with an HTTP status and a sentence."""

    @app.exception_handler(LookupError)
    async def missing(_: Request, problem: Exception) -> Response:
        return _json({"detail": visible(str(problem))}, 404)

    @app.exception_handler(ValueError)
    async def mistaken(_: Request, problem: Exception) -> Response:
        return _json({"detail": visible(str(problem))}, 400)

    @app.exception_handler(OSError)
    async def unreadable(_: Request, problem: Exception) -> Response:
        return _json({"detail": visible(f"a file of the run cannot be read now: {problem}")}, 503)


def _serve_page(app: FastAPI) -> None:
    """Serve the page, its style and its script."""

    @app.get("/")
    def root() -> Response:
        return Response(page(), media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404, "no such file")
        source = resources.files("grpo.view").joinpath("templates", name).read_text(encoding="utf-8")
        return Response(source, media_type=_TYPES[name.rpartition(".")[2]])


def _serve_runs(app: FastAPI, runs: Sequence[RunData]) -> None:
    """Serve the data of all runs together."""

    @app.get("/api/state")
    def state() -> Response:
        return _json(view_data.state(runs))

    @app.get("/api/overview")
    def overview() -> Response:
        return _json(view_data.overview(runs))

    @app.get("/api/charts")
    def charts(metric: Annotated[list[str], Query()]) -> Response:
        return _json(curves.charts(runs, metric))


def _serve_single_run(app: FastAPI, runs: Sequence[RunData]) -> None:
    """Serve the data of a single run, which a request chooses by the run's number."""

    def chosen(run: int) -> RunData:
        if not 0 <= run < len(runs):
            raise HTTPException(404, f"there are {len(runs)} runs, numbered from 0; got {run}")
        return runs[run]

    @app.get("/api/groups")
    def groups(
        run: _Run = 0,
        source: _Source = "training",
        status: Annotated[list[str] | None, Query(max_length=2 * len(STATUSES))] = None,
        reward_low: _Reward = None,
        reward_high: _Reward = None,
        tokens_low: _Limit = None,
        tokens_high: _Limit = None,
        step_low: _Limit = None,
        step_high: _Limit = None,
        text: Annotated[str, Query(max_length=1000)] = "",
        order: Order = "newest",
        offset: _Step = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_ROWS)] = 100,
    ) -> Response:
        limits = (reward_low, reward_high, tokens_low, tokens_high, step_low, step_high)
        wanted = Filter(frozenset(status or ()), *limits, text=text)
        return _json(view_data.list_groups(chosen(run), source, wanted, order, offset, limit))

    @app.get("/api/group")
    def group(step: _Step, group: _Step, run: _Run = 0, source: _Source = "training", tokens: bool = False) -> Response:
        most = _LARGEST if tokens else 0
        return _json(view_data.group_details(chosen(run), source, step, [group], shaded_tokens=most)[0])

    @app.get("/api/learned")
    def learned(before: _Step, after: _Step, run: _Run = 0) -> Response:
        return _json(step_comparison.learned(chosen(run), before, after))

    @app.get("/api/flags")
    def flags(run: _Run = 0) -> Response:
        return _json(chosen(run).flags())

    @app.get("/api/mismatch")
    def mismatch(run: _Run = 0) -> Response:
        return _json(view_data.mismatch(chosen(run)))

    @app.get("/api/timeline")
    def timeline(step: _Step, run: _Run = 0) -> Response:
        data = chosen(run)
        return _json(view_data.time_line(data, step) | {"chart": curves.step_time_of(data)})


def _json(data: Any, status: int = 200) -> Response:
    return Response(json.dumps(data, allow_nan=False), status, media_type="application/json")


def is_own_host(header: str, hosts: Sequence[str] = ()) -> bool:
    """Whether a request's Host is an address, `localhost`, or a name in `hosts`.

    This check stops DNS rebinding, in which an attacker's host name points to this machine. The attack needs a host
    name, so a Host that is an IP address is safe.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    if name.lower() in ("localhost", *(host.lower() for host in hosts)):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def serve(
    runs: Sequence[RunData], *, host: str, port: int, say: Callable[[str], None], ask_token: bool = False
) -> None:
    """Serve until Ctrl-C, and keep reading the files of the runs.

    Args:
        runs: runs in the order of the page.
        host: address to serve on; every address except loopback requires a token.
        port: port number; 0 means any free port.
        say: function that prints a line.
        ask_token: require a token even on loopback, because other users of the machine could read the page.

    Raises:
        OSError: the port is in use, or the address does not belong to this machine.
    """
    token = secrets.token_urlsafe(32) if ask_token or not is_loopback(host) else None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as problem:
        raise OSError(f"cannot listen on {host}:{port}: {problem}; --port 0 takes a free port") from problem
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(runs, hosts=[host], token=token), host=host, port=port, log_level="warning", access_log=False
        )
    )
    stopping = threading.Event()
    reader = threading.Thread(target=_keep_reading, args=(runs, stopping, say), name="reading runs", daemon=True)
    address = f"[{host}]" if ":" in host else host
    token_query = f"?token={token}" if token else ""
    say(f"http://{address}:{listening.getsockname()[1]}/{token_query}  (Ctrl-C stops the server)")
    if not is_loopback(host):
        say("Everybody with this address can read the runs; the connection is not encrypted (docs/looking.md)")
    reader.start()
    try:
        # Ctrl-C is the normal way to stop the server.
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])
    finally:
        stopping.set()


def _keep_reading(runs: Sequence[RunData], stopping: threading.Event, say: Callable[[str], None]) -> None:
    printed: set[str] = set()
    while True:
        for run in runs:
            try:
                for index in run.indexes.values():
                    index.refresh()
            except OSError as problem:
                # A file system may become available again. Until then, the page shows the data that was read earlier.
                message = f"{run.run_dir} cannot be read now: {problem}"
                if message not in printed:
                    say(message)
                    printed.add(message)
        if stopping.wait(_REFRESH_S):
            return
