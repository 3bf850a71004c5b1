"""Hosts in each privilege a sandbox may be started with, one per mode for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from sandbox_host import MODES, WITHOUT_NAMESPACES, Host

from sandbox import IsolationLevel

_hosts: dict[str, Host] = {}


def host_in(mode: str) -> Host:
    if mode != "unprivileged" and os.geteuid() != 0:
        pytest.skip("only root can start the sandbox as root or as another user")
    if mode not in _hosts:
        host = Host(mode, level=IsolationLevel.CONFINED)
        wanted = IsolationLevel.CONFINED if mode in WITHOUT_NAMESPACES else IsolationLevel.FULL
        if host.isolation.level < wanted:
            host.close()
            pytest.skip(f"this machine gives {mode} no more than {host.isolation}")
        _hosts[mode] = host
    return _hosts[mode]


@pytest.fixture(params=MODES)
def host(request: pytest.FixtureRequest) -> Host:
    return host_in(request.param)


@pytest.fixture
def root_host() -> Host:
    return host_in("root")


@pytest.fixture(scope="session", autouse=True)
def close_hosts() -> Iterator[None]:
    yield
    for host in _hosts.values():
        host.close()
