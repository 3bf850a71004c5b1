"""`grpo view`: a page that shows runs. By default only this machine can open the page; a network needs a token.

A policy wrote the data, so the server does not trust it. In the JSON that the server sends, every invisible
character is replaced by its name. The page inserts data only as text. The content security policy allows only scripts,
styles and connections of this server. The server refuses requests that name another host or come from another site, so
no other web site can read the page. A request cannot name a file path, and every number in a request has a limit. The
size of the runs limits the cost of a request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Query, Response

from grpo.addresses import is_loopback
from grpo.view import curves
from grpo.view import learned as step_comparison
from grpo.view import payloads as view_data
from grpo.view.columns import STATUSES
from grpo.view.guards import guarded_app, json_response, new_token, serve_app
from grpo.view.index import Filter, Order
from grpo.view.page import ASSETS, page
from grpo.view.runs import RunData

# Seconds between two reads of the run folders. The folders are read again because a run may still be active.
_REFRESH_S = 2.0
_MOST_ROWS = 500
# The largest integer that every JSON reader represents exactly. All step, token and group numbers are at most
# this integer.
_LARGEST = 2**53
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
    app = guarded_app(hosts=hosts, token=token)
    _serve_page(app)
    _serve_runs(app, runs)
    _serve_single_run(app, runs)
    return app


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
        return json_response(view_data.state(runs))

    @app.get("/api/overview")
    def overview() -> Response:
        return json_response(view_data.overview(runs))

    @app.get("/api/charts")
    def charts(metric: Annotated[list[str], Query()]) -> Response:
        return json_response(curves.charts(runs, metric))


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
        return json_response(view_data.list_groups(chosen(run), source, wanted, order, offset, limit))

    @app.get("/api/group")
    def group(step: _Step, group: _Step, run: _Run = 0, source: _Source = "training", tokens: bool = False) -> Response:
        most = _LARGEST if tokens else 0
        return json_response(view_data.group_details(chosen(run), source, step, [group], shaded_tokens=most)[0])

    @app.get("/api/learned")
    def learned(before: _Step, after: _Step, run: _Run = 0) -> Response:
        return json_response(step_comparison.learned(chosen(run), before, after))

    @app.get("/api/flags")
    def flags(run: _Run = 0) -> Response:
        return json_response(chosen(run).flags())

    @app.get("/api/mismatch")
    def mismatch(run: _Run = 0) -> Response:
        return json_response(view_data.mismatch(chosen(run)))

    @app.get("/api/timeline")
    def timeline(step: _Step, run: _Run = 0) -> Response:
        data = chosen(run)
        return json_response(view_data.time_line(data, step) | {"chart": curves.step_time_of(data)})


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
    token = new_token() if ask_token or not is_loopback(host) else None
    stopping = threading.Event()
    reader = threading.Thread(target=_keep_reading, args=(runs, stopping, say), name="reading runs", daemon=True)
    reader.start()
    try:
        serve_app(make_app(runs, hosts=[host], token=token), host=host, port=port, token=token, say=say)
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
