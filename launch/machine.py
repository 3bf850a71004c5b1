"""The parts of the machine that the installer uses: platform, compiler, Python, and the sources in pip's settings."""
# ruff: noqa: UP006, UP035, UP045
# Like the installer, this file must run under Python 3.6.

import ast
import base64
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import unquote, urlsplit, urlunsplit

SUPPORTED = ((3, 11), (3, 12), (3, 13))
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")
COMPILERS = ("gcc", "cc", "clang")  # in the order in which Triton looks for them
OLDEST_GLIBC = (2, 31)  # the wheels of llguidance need it; all other wheels in the lock need an older glibc or the same
PROBE_SECONDS = 10
OLDEST_DRIVER = 580  # the first branch for CUDA 13


class InstallError(Exception):
    """A problem that only the user can solve; the message is one sentence with the remedy."""


class PipSettings(NamedTuple):
    """Where packages come from, as settings of uv."""

    options: List[str]  # for `uv pip install` and `uv pip compile`
    environment: Dict[str, str]
    dropped: List[str]  # sources that are left out, because they could not be reached


def check_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise InstallError(
            f"VeriGRPO runs on Linux on x86_64 or aarch64 and this is {system} on {machine}: "
            "use a supported machine, a container or a virtual machine."
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or [int(part) for part in version.split(".")[:2]] < list(OLDEST_GLIBC):
        raise InstallError(
            "VeriGRPO's packages need glibc {}.{} or later and this is {}: use Ubuntu 20.04, Debian 11, RHEL 9 or "
            "later, or a container of one.".format(*OLDEST_GLIBC, f"{libc} {version}".strip() or "another C library")
        )


def driver_note(version_file: str = "/proc/driver/nvidia/version") -> str:
    """A sentence about this machine's NVIDIA driver, beside the driver that the GPU builds need."""
    needs = f"the GPU builds use CUDA 13, which needs an NVIDIA driver {OLDEST_DRIVER} or newer"
    try:
        with open(version_file, encoding="utf-8") as file:
            driver = re.search(r"\b(\d{3,})\.\d+", file.read())
    except OSError:
        driver = None
    if driver is None:
        return f"This machine shows no NVIDIA driver; {needs} where you train."
    if int(driver.group(1)) < OLDEST_DRIVER:
        return (
            f"WARNING: this machine's NVIDIA driver is {driver.group(0)}, and {needs}: renew the driver, or install "
            "the package cuda-compat-13-0 on GPUs for data centres."
        )
    return f"This machine's NVIDIA driver is {driver.group(0)}; {needs}."


def check_compiler() -> None:
    """Check now, because Triton compiles at the first use of a kernel, long after the install."""
    wanted = ([os.environ["CC"]] if os.environ.get("CC") else []) + list(COMPILERS)
    if not any(shutil.which(name.split()[0]) for name in wanted if name.strip()):
        raise InstallError(
            f"No C compiler is on the PATH (looked for {', '.join(wanted)}), and Triton compiles kernels for a GPU "
            "with it: install a compiler, for example with `sudo apt-get install gcc` or `sudo dnf install gcc`."
        )


def interpreter_version(command: str) -> Optional[Tuple[str, Tuple[int, int, int]]]:
    """The real path and version of an interpreter, or None if it does not run, as some shims of pyenv."""
    path = shutil.which(command)
    if path is None:
        return None
    program = "import sys; print(sys.executable); print('%d %d %d' % sys.version_info[:3])"
    answer = subprocess.run([path, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    lines = answer.stdout.decode().splitlines()
    if answer.returncode != 0 or len(lines) != 2:
        return None
    major, minor, patch = (int(part) for part in lines[1].split())
    return lines[0], (major, minor, patch)


def find_interpreter() -> str:
    """Find the interpreter: $PYTHON, else the first command of PYTHONS with a supported version."""
    remedy = (
        "name a supported Python, as in `make train PYTHON=python3.12`, or install it, for example with "
        "`sudo apt-get install python3.11 python3.11-venv`."
    )
    wanted = "{}.{} to {}.{}".format(*SUPPORTED[0], *SUPPORTED[-1])
    chosen = os.environ.get("PYTHON")
    others = []
    for command in [chosen] if chosen else [*PYTHONS, sys.executable]:
        interpreter = interpreter_version(command)
        if interpreter is None:
            continue
        path, version = interpreter
        if version[:2] in SUPPORTED:
            return path
        others.append("Python {}.{}.{} ({})".format(*version, path))
    if chosen and not others:
        raise InstallError(f"PYTHON={chosen} does not run, and VeriGRPO needs Python {wanted}: {remedy}")
    raise InstallError(f"VeriGRPO needs Python {wanted} and found only {', '.join(dict.fromkeys(others))}: {remedy}")


def check_venv_module(python: str) -> None:
    probe = subprocess.run([python, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL, check=False)
    if probe.returncode != 0:
        raise InstallError(
            f"{python} lacks the venv module or pip's installer: on Debian and Ubuntu install them with "
            "`sudo apt-get install python3-venv` (`python3.12-venv` for Python 3.12), or choose another Python with "
            "`make train PYTHON=python3.12`."
        )


def parse_pip_config(listing: str) -> Dict[str, str]:
    """Read `pip config list` with pip's precedence: [install] over [global], PIP_* variables over both."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    values: Dict[str, Tuple[int, str]] = {}
    for line in listing.splitlines():
        match = re.match(r"(global|install|:env:)\.([\w-]+)=(.*)$", line)
        if match is None:
            continue
        section, key, value = match.groups()
        key = key.replace("_", "-")
        if ranks[section] >= values.get(key, (0, ""))[0]:
            values[key] = (ranks[section], str(ast.literal_eval(value)))
    return {key: value for key, (_, value) in values.items() if value}


def is_reachable(source: str, cert: Optional[str], trusted: List[str]) -> bool:
    """Whether an index or a folder of wheels answers. pip skips a dead source, but uv would give up."""
    parts = urlsplit(source)
    if parts.scheme in ("", "file"):
        return os.path.exists(unquote(parts.path))
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    request = urllib.request.Request(urlunsplit((parts.scheme, host, parts.path, parts.query, "")), method="HEAD")
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    context = ssl.create_default_context(cafile=cert) if cert and os.path.isfile(cert) else ssl.create_default_context()
    if host in trusted or parts.hostname in trusted:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS, context=context).close()
    except urllib.error.HTTPError as answer:
        # An index may refuse its front page or a HEAD request although it serves packages. A broken server answers 5xx.
        return answer.code < 500
    except OSError:
        return False
    return True


def translate(config: Dict[str, str], environ: Dict[str, str]) -> PipSettings:
    """Translate pip's settings into uv's options. The user's UV_* variables take precedence."""
    options: List[str] = []
    dropped: List[str] = []
    cert, trusted = config.get("cert"), config.get("trusted-host", "").split()

    def reachable(key: str) -> List[str]:
        sources = list(dict.fromkeys(config.get(key, "").split()))
        usable = [source for source in sources if is_reachable(source, cert, trusted)]
        dropped.extend(source for source in sources if source not in usable)
        return usable

    if config.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options += ["--no-index"]
    else:
        if config.get("index-url") and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(environ):
            options += ["--default-index", config["index-url"]]
        extra = [] if {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & set(environ) else reachable("extra-index-url")
        for source in extra:
            options += ["--index", source]
        if extra and "UV_INDEX_STRATEGY" not in environ:
            # pip searches all indexes; by default uv stops at the first index that has the package in any version.
            options += ["--index-strategy", "unsafe-best-match"]
    for source in [] if "UV_FIND_LINKS" in environ else reachable("find-links"):
        options += ["--find-links", source]
    for host in [] if "UV_INSECURE_HOST" in environ else trusted:
        options += ["--allow-insecure-host", host]

    environment: Dict[str, str] = {}
    if cert:
        environment["SSL_CERT_DIR" if os.path.isdir(cert) else "SSL_CERT_FILE"] = cert
    if config.get("client-cert"):
        environment["SSL_CLIENT_CERT"] = config["client-cert"]
    if config.get("proxy"):
        environment.update({"HTTP_PROXY": config["proxy"], "HTTPS_PROXY": config["proxy"]})
    timeout = config.get("timeout") or config.get("default-timeout")
    if timeout and "UV_HTTP_TIMEOUT" not in environ:
        environment["UV_HTTP_TIMEOUT"] = str(int(float(timeout)))
    return PipSettings(options, environment, dropped)


def pip_settings(python: str) -> PipSettings:
    listing = subprocess.run([python, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, check=False)
    return translate(parse_pip_config(listing.stdout.decode()), dict(os.environ))
