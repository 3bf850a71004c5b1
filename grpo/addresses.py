"""Addresses of servers: their secrets, and whether they leave this machine."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

# A login ends at the last @ before the path, because a password may contain @. Any part of a query may be a secret.
_LOGIN = re.compile(r"(?i)(https?://)[^/?#\s]*@")
_QUERY = re.compile(r"(?i)(https?://[^?#\s]*)[?#]\S*")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A URL in its parts.

    Attributes:
        address: scheme, host, port and path; safe to show and store.
        login: `user:password`, or None.
        query: names and values after the question mark.
    """

    address: str
    login: str | None
    query: tuple[tuple[str, str], ...]

    @property
    def secrets(self) -> tuple[str, ...]:
        """The parts that must not be shown."""
        password = (self.login.partition(":")[2] or self.login,) if self.login else ()
        return (*password, *(value for _, value in self.query if value))

    @property
    def is_plain(self) -> bool:
        """Whether others can read the traffic: it leaves this machine without https."""
        parts = urlsplit(self.address)
        return parts.scheme.lower() == "http" and not is_loopback(parts.hostname or "")


def server_url(url: str) -> ServerUrl:
    """Split a URL into its parts.

    Raises:
        ValueError: the text is not a URL.
    """
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    address = urlunsplit((parts.scheme.lower(), host, parts.path, "", ""))
    return ServerUrl(address, unquote(login) if at else None, tuple(parse_qsl(parts.query, keep_blank_values=True)))


def without_secrets(text: str) -> str:
    """The text with the logins, queries and fragments of its http URLs left out."""
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
