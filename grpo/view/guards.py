"""What every page of this project refuses, whoever serves it: strangers, other sites, requests without the token.

By default only this machine can open a page; a network needs a token. The content security policy allows only scripts,
styles and connections of the server itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from grpo.addresses import is_loopback
from grpo.visible import visible

# Longest query, in characters. A request for every chart of a run with 400 metrics needs half of this length.
_LONGEST_QUERY = 32 * 1024
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


def guarded_app(*, hosts: Sequence[str] = (), token: str | None = None, command: str = "grpo view") -> FastAPI:
    """Make an application that answers only this machine's browsers, or those with the token.

    Args:
        hosts: host names that requests may use, besides `localhost` and addresses.
        token: secret that a browser must send; if None, everybody who can reach the server may read the page.
        command: command that printed the page's address.
    """
    # FastAPI's documentation pages would load scripts from other sites, so these pages are switched off.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # The middleware that is added last runs first. So foreign requests are refused before the token is checked.
    if token is not None:
        _ask_for_token(app, token, command)
    _refuse_strangers(app, hosts)
    _tell_problems(app)
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
            response = json_response({"detail": f"a query may have at most {_LONGEST_QUERY:,} characters"}, 414)
        else:
            response = await answer(request)
        response.headers.update(_HEADERS)
        return response


def _ask_for_token(app: FastAPI, token: str, command: str) -> None:
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
            return json_response({"detail": f"open the address that `{command}` printed: it ends in a token"}, 401)
        # Redirect, so that the token does not stay in the browser's address bar and history.
        response = Response(status_code=303, headers={"Location": "/"})
        response.set_cookie(cookie, token, httponly=True, samesite="lax")
        return response


def _tell_problems(app: FastAPI) -> None:
    """If a request causes an error, answer with an HTTP status and a sentence."""

    @app.exception_handler(LookupError)
    async def missing(_: Request, problem: Exception) -> Response:
        return json_response({"detail": visible(str(problem))}, 404)

    @app.exception_handler(ValueError)
    async def mistaken(_: Request, problem: Exception) -> Response:
        return json_response({"detail": visible(str(problem))}, 400)

    @app.exception_handler(OSError)
    async def unreadable(_: Request, problem: Exception) -> Response:
        return json_response({"detail": visible(f"a file of the run cannot be read now: {problem}")}, 503)


def json_response(data: Any, status: int = 200) -> Response:
    """Answer with plain data as JSON."""
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


def new_token() -> str:
    """A secret for a page."""
    return secrets.token_urlsafe(32)


def serve_app(app: FastAPI, *, host: str, port: int, token: str | None, say: Callable[[str], None]) -> None:
    """Print the address of a page, and serve it until Ctrl-C.

    Args:
        app: application from `guarded_app`.
        host: address to serve on.
        port: port number; 0 means any free port.
        token: token of the application.
        say: function that prints a line.

    Raises:
        OSError: the port is in use, or the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as problem:
        raise OSError(f"cannot listen on {host}:{port}: {problem}; --port 0 takes a free port") from problem
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    address = f"[{host}]" if ":" in host else host
    token_query = f"?token={token}" if token else ""
    say(f"http://{address}:{listening.getsockname()[1]}/{token_query}  (Ctrl-C stops the server)")
    if not is_loopback(host):
        say("Everybody with this address can read the runs; the connection is not encrypted (docs/looking.md)")
    # Ctrl-C is the normal way to stop the server.
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
