"""`grpo view`: a page for looking at runs, served to this machine only, and the same page as one file.

What it serves was written by a policy, so it trusts none of it: data leaves as JSON with every hidden character named,
the page sets it as text only, and its content security policy allows no script, style or connection but its own. A web
site that a person visits meanwhile can neither read it nor reach it under a name of its own: requests that name another
host, or come from another site, are refused. No path is ever taken from a request.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response

from grpo import step_comparison, view_data
from grpo.html_report import visible
from grpo.rollout_index import Filter, Order
from grpo.view_page import ASSETS, page
from grpo.view_runs import RunData

# Seconds between two looks at the folders of runs that may still go on.
_REFRESH_S = 2.0
_MOST_ROWS = 500
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
_Step = Annotated[int, Query(ge=0)]
_Limit = Annotated[int | None, Query()]
_Reward = Annotated[float | None, Query(allow_inf_nan=False)]


def make_app(runs: Sequence[RunData], *, hosts: Sequence[str] = ()) -> FastAPI:
    """The application that serves the page of some runs.

    Args:
        runs: in the order in which they are shown.
        hosts: names under which it may be asked, besides `localhost` and addresses.
    """
    # Its own documentation pages would load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _refuse_strangers(app, hosts)
    _tell_problems(app)
    _serve_page(app)
    _serve_runs(app, runs)
    _serve_one(app, runs)
    return app


def _refuse_strangers(app: FastAPI, hosts: Sequence[str]) -> None:
    """Answer nobody who names another host or comes from another site, and send the policy with every answer."""

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response: Response
        if not is_own_host(request.headers.get("host", ""), hosts):
            response = Response("this page answers to localhost or an address; name another with --host", 421)
        elif request.url.path != "/" and request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            response = Response("another site may not read this page's data", 403)
        else:
            response = await answer(request)
        response.headers.update(_HEADERS)
        return response


def _tell_problems(app: FastAPI) -> None:
    """What is not there, and what was asked wrongly, as a status and a sentence."""

    @app.exception_handler(LookupError)
    async def missing(_: Request, problem: Exception) -> Response:
        return _json({"detail": visible(str(problem))}, 404)

    @app.exception_handler(ValueError)
    async def mistaken(_: Request, problem: Exception) -> Response:
        return _json({"detail": visible(str(problem))}, 400)


def _serve_page(app: FastAPI) -> None:
    """The page, its style and its script."""

    @app.get("/")
    def root() -> Response:
        return Response(page(), media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404, "no such file")
        source = resources.files("grpo").joinpath("templates", name).read_text(encoding="utf-8")
        return Response(source, media_type=_TYPES[name.rpartition(".")[2]])


def _serve_runs(app: FastAPI, runs: Sequence[RunData]) -> None:
    """What is told of all runs together."""

    @app.get("/api/state")
    def state() -> Response:
        return _json(view_data.state(runs))

    @app.get("/api/overview")
    def overview() -> Response:
        return _json(view_data.overview(runs))

    @app.get("/api/charts")
    def charts(metric: Annotated[list[str], Query()]) -> Response:
        return _json(view_data.charts(runs, metric))


def _serve_one(app: FastAPI, runs: Sequence[RunData]) -> None:
    """What is told of one run, chosen by its number."""

    def chosen(run: int) -> RunData:
        if not 0 <= run < len(runs):
            raise HTTPException(404, f"there are {len(runs)} runs, numbered from 0; got {run}")
        return runs[run]

    @app.get("/api/groups")
    def groups(
        run: int = 0,
        source: _Source = "training",
        status: Annotated[list[str] | None, Query()] = None,
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
    def group(step: _Step, group: _Step, run: int = 0, source: _Source = "training", tokens: bool = False) -> Response:
        return _json(view_data.group_detail(chosen(run), source, step, group, tokens=tokens))

    @app.get("/api/learned")
    def learned(before: _Step, after: _Step, run: int = 0) -> Response:
        return _json(step_comparison.learned(chosen(run), before, after))

    @app.get("/api/flags")
    def flags(run: int = 0) -> Response:
        return _json(chosen(run).flags())

    @app.get("/api/mismatch")
    def mismatch(run: int = 0) -> Response:
        return _json(view_data.mismatch(chosen(run)))

    @app.get("/api/timeline")
    def timeline(step: _Step, run: int = 0) -> Response:
        return _json(view_data.time_line(chosen(run), step))


def _json(data: Any, status: int = 200) -> Response:
    return Response(json.dumps(data, allow_nan=False), status, media_type="application/json")


def is_own_host(header: str, hosts: Sequence[str] = ()) -> bool:
    """True where a request's Host is an address, `localhost`, or one of `hosts`.

    A name that somebody else has made to point here (DNS rebinding) is none of them; an address cannot be rebound.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    if name.lower() in ("localhost", *(host.lower() for host in hosts)):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def serve(runs: Sequence[RunData], *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, and keep reading what the runs write.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as problem:
        raise OSError(f"{host}:{port} cannot be served on: {problem}; --port 0 takes a free port") from problem
    server = uvicorn.Server(
        uvicorn.Config(make_app(runs, hosts=[host]), host=host, port=port, log_level="warning", access_log=False)
    )
    stopping = threading.Event()
    reader = threading.Thread(target=_keep_reading, args=(runs, stopping, say), name="reading runs", daemon=True)
    address = f"[{host}]" if ":" in host else host
    say(f"http://{address}:{listening.getsockname()[1]}/  (Ctrl-C ends it)")
    reader.start()
    try:
        # Ctrl-C is how it ends.
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])
    finally:
        stopping.set()


def _keep_reading(runs: Sequence[RunData], stopping: threading.Event, say: Callable[[str], None]) -> None:
    told: set[str] = set()
    while True:
        for run in runs:
            try:
                for index in run.indexes.values():
                    index.refresh()
            except OSError as problem:
                # A file system may come back; until then the page shows what was read before.
                message = f"{run.run_dir} cannot be read now: {problem}"
                if message not in told:
                    say(message)
                    told.add(message)
        if stopping.wait(_REFRESH_S):
            return
