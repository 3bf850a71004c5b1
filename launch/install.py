#!/usr/bin/env python3
"""Make or refresh `.venv`: a Python interpreter, the locked packages, and this project in editable form.

    launch/install.py           install what is missing (`make install`)
    launch/install.py gpu       the same for the GPU builds, into `.venv-gpu` (`make install-gpu`)
    launch/install.py lock      resolve pyproject.toml anew into both locks, launch/requirements-*.lock (`make lock`)

Packages come from the indexes and folders in pip's configuration. uv installs them, because it is ten times faster than
pip; its options are translated from pip's. The installer looks for the CPU build of torch there first, then on
PyTorch's CPU index (the environment variable TORCH_CPU_INDEX names another index).

The lock must have the hash of every package file, except torch's. With INSTALL_UNVERIFIED=1 the installer also takes
other builds of the locked versions, such as a company's builds.
"""
# ruff: noqa: E402, UP006, UP035, UP045
# The machine's `python3` starts this script, so it must also run under Python 3.6 and find a newer Python from there.
# Hence typing.List and typing.Optional.

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the project is not installed yet

from launch.machine import (
    InstallError,
    PipSettings,
    check_compiler,
    check_platform,
    check_venv_module,
    driver_note,
    find_interpreter,
    interpreter_version,
    pip_settings,
)

LOG = ROOT / "build" / "install.log"


class Kind(NamedTuple):
    """An environment that this script can make."""

    venv: Path
    lock: Path
    needed_gib: float  # uv's cache shares its files if both are on the same file system
    torch_apart: bool  # whether torch comes from an index of its own, and without hashes


# The CPU environment takes 3.4 GiB. The size of the GPU environment is an estimate from the sizes of its wheels.
CPU = Kind(ROOT / ".venv", ROOT / "launch" / "requirements-cpu.lock", 4.0, True)
GPU = Kind(ROOT / ".venv-gpu", ROOT / "launch" / "requirements-gpu.lock", 14.0, False)
# The environment that this process makes; `use` changes it.
VENV, LOCK, NEEDED_GIB, TORCH_APART = CPU
STAMP = VENV / "verigrpo-install.json"

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HEARTBEAT_SECONDS = 15
COMPILE = "pip compile pyproject.toml --universal --python-version 3.11 --no-annotate --no-header --generate-hashes "
LOCK_COMMAND = COMPILE + "--extra cpu --extra audit --extra dev --override launch/overrides-cpu.txt"
GPU_LOCK_COMMAND = COMPILE + "--extra gpu --extra lora --extra audit --extra dev"
LOCK_HEADER = """\
# Written by `make lock` from pyproject.toml; do not edit. Linux, x86_64 and aarch64.
# It names every package, because they are installed without dependency resolution. Their files must have these hashes.
# launch/install.py installs torch first and without hashes: each index has other files of its CPU build.
"""
GPU_LOCK_HEADER = """\
# Written by `make lock` from pyproject.toml; do not edit. Linux, CUDA 13: it needs an NVIDIA driver 580 or newer.
# It names every package, because they are installed without dependency resolution. Their files must have these hashes.
"""


def use(kind: Kind) -> None:
    """Make this kind of environment in this process."""
    global VENV, LOCK, NEEDED_GIB, TORCH_APART, STAMP
    VENV, LOCK, NEEDED_GIB, TORCH_APART = kind
    STAMP = VENV / "verigrpo-install.json"


def say(text: str) -> None:
    print(text, flush=True)


def without_login(text: str) -> str:
    """The text without the user:password@ of its URLs, for the terminal and the log."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def check_disk() -> None:
    """Check the room for the environment, and for uv's cache, which may be on another file system."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("UV_CACHE_DIR") or os.path.join(cache_home, "uv"))
    for place, remedy in ((VENV, "free some, or clone to a larger disk"), (cache, "free some, or set UV_CACHE_DIR")):
        while not place.exists():
            place = place.parent
        free_gib = shutil.disk_usage(str(place)).free / 2**30
        if free_gib < NEEDED_GIB:
            raise InstallError(
                f"The environment needs {NEEDED_GIB} GiB of disk and the file system of {place} has {free_gib:.1f} GiB "
                f"free: {remedy}."
            )


# --- steps ------------------------------------------------------------------------------------------------------


def attempt(command: List[str], environment: Optional[Dict[str, str]] = None) -> Tuple[int, str]:
    """Run a command with its output in the log; print from time to time that it still runs."""
    started = time.monotonic()
    # Append to the log ("a"), and read the new part of it ("+").
    with LOG.open("a+", encoding="utf-8", errors="replace") as log:
        log.write("\n$ " + without_login(" ".join(command)) + "\n")
        log.flush()
        start_of_output = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, cwd=str(ROOT), env={**os.environ, **(environment or {})}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=HEARTBEAT_SECONDS)
                except subprocess.TimeoutExpired:
                    say(f"    still running, {time.monotonic() - started:.0f} s")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(start_of_output)
        return process.returncode, log.read()


def explain(what: str, output: str) -> InstallError:
    """Explain a failed step in one sentence, from pip's or uv's output."""
    if re.search(r"No space left on device|os error 28|Disk quota exceeded", output):
        return InstallError(
            f"The disk filled up while installing {what}: the environment needs {NEEDED_GIB} GiB on the file system of "
            f"{VENV}, and uv's cache as much if it is on another file system (UV_CACHE_DIR); full output: {LOG}."
        )
    differing = re.search(r"(?i)hash mismatch for `([^`]+)`|hashes are required|do not match the hashes", output)
    if differing:
        return InstallError(
            f"{differing.group(1) or 'A package'} has no hash in the lock ({what}): somebody has changed the "
            "file, or it is another build, which INSTALL_UNVERIFIED=1 accepts; full output: "
            f"{LOG}."
        )
    names = re.findall(
        r"No matching distribution found for (\S+)|Because ([\w.+=-]+)[^\n]*? (?:was not found|has no )"
        r"|there (?:is|are) no versions? of (\S+)|Failed to (?:fetch|download)(?: distribution)?:? `([^`]+)`",
        output,
    )
    missing = list(dict.fromkeys(without_login(name) for groups in names for name in groups if name))
    if missing:
        return InstallError(
            f"Could not fetch {', '.join(missing[:3])} ({what}): check the network and pip's sources "
            "(`pip config list`; PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, HTTPS_PROXY), then run "
            f"this again; full output: {LOG}."
        )
    last = ([line.strip() for line in output.splitlines() if line.strip()] or ["no output"])[-1]
    return InstallError(f"Installing {what} failed ({last}): the full output is in {LOG}.")


def step(what: str, command: List[str], environment: Optional[Dict[str, str]] = None) -> None:
    started = time.monotonic()
    say(f"  {what} ...")
    code, output = attempt(command, environment)
    if code != 0:
        raise explain(what, output)
    say(f"  {what}: {time.monotonic() - started:.1f} s")


def requirements(text: str) -> List[str]:
    """The requirements of a lock, each with its hashes."""
    return re.findall(r"^[^\s#](?:.*\\\n)*.*", text, re.MULTILINE)


def locked(name: str) -> str:
    """The lock's requirement of a package, with its hashes."""
    for requirement in requirements(LOCK.read_text(encoding="utf-8")):
        if requirement.startswith(name + "=="):
            return requirement
    raise InstallError(f"{LOCK} does not name {name}: renew the lock with `make lock`, or restore it with git.")


def pinned(name: str) -> str:
    """A package in its locked version, such as `torch==2.13.0+cpu`."""
    return locked(name).split("\n")[0].rstrip("\\ ")


def verified() -> List[str]:
    """The option of pip and uv that refuses files without a hash in the lock."""
    return [] if os.environ.get("INSTALL_UNVERIFIED") == "1" else ["--require-hashes"]


def exact(requirement: str) -> str:
    """A pin that no local build of the version meets: `==2.13.0` would take 2.13.0+cpu from a folder of wheels."""
    return requirement.replace("==", "===", 1)


def requirements_file(name: str, chosen: List[str]) -> str:
    """Write a file of requirements for pip or uv, without hashes if the user wants no check."""
    if not verified():
        chosen = [requirement.split("\n")[0].rstrip("\\ ") for requirement in chosen]
    path = ROOT / "build" / name
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return str(path)


def install_torch(uv: List[str], settings: PipSettings) -> None:
    """Install torch from pip's sources if a mirror or a folder of wheels has it, else from PyTorch's CPU index."""
    pin, started = pinned("torch"), time.monotonic()
    index = os.environ.get("TORCH_CPU_INDEX") or TORCH_CPU_INDEX
    say(f"  {pin} ...")
    # --no-config, because a user's uv.toml could put another index before PyTorch's.
    from_search_path = [*uv, "pip", "install", "--no-deps", pin, *settings.options]
    from_pytorch = [*uv, "pip", "install", "--no-config", "--no-deps", pin, "--default-index", index]
    if attempt(from_search_path, settings.environment)[0] != 0:
        say(f"    not on the package search path; trying {without_login(index)}")
        code, output = attempt(from_pytorch, settings.environment)
        if code != 0 and re.search(r"No space left on device|os error 28|Disk quota exceeded", output):
            raise explain(pin, output)
        if code != 0:
            raise InstallError(
                f"Could not fetch {pin} for this Python, neither from the package search path nor from "
                f"{without_login(index)}: make that index reachable (HTTPS_PROXY, PIP_CERT), name a mirror "
                f"of it in TORCH_CPU_INDEX, or put the wheel in a folder named by PIP_FIND_LINKS; full output: {LOG}."
            )
    say(f"  {pin}: {time.monotonic() - started:.1f} s")


# --- the environment --------------------------------------------------------------------------------------------


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def environment_digest(version: Tuple[int, int, int]) -> str:
    """A digest; if it changes, `.venv` must be made again."""
    scripts = [path.read_bytes() for path in (Path(__file__), ROOT / "launch" / "machine.py")]
    return digest(LOCK.read_bytes(), *scripts, repr(tuple(version)).encode())


def project_digest() -> str:
    """A digest of entry points and packages; if it changes, the project must be installed into `.venv` again."""
    return digest((ROOT / "pyproject.toml").read_bytes())


def read_stamp() -> Dict[str, str]:
    """The stamp of `.venv`; empty if it is missing or the last install did not finish."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(**stamp: str) -> None:
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    os.replace(str(partial), str(STAMP))


def is_current(stamp: Dict[str, str]) -> bool:
    """Whether `.venv` has the packages of the lock, for the Python in $PYTHON or, without it, any supported Python."""
    present = interpreter_version(str(VENV / "bin" / "python"))
    if present is None or stamp.get("environment") != environment_digest(present[1]):
        return False
    if not os.environ.get("PYTHON"):
        return True
    wanted = interpreter_version(os.environ["PYTHON"])
    return wanted is not None and wanted[1] == present[1]


def make_environment(python: str) -> None:
    check_venv_module(python)
    if VENV.exists():
        if not STAMP.exists():
            raise InstallError(f"{VENV} exists but was not made by this script: move it away or remove it.")
        say(f"  {VENV.name} is out of date or unfinished; making it again")
        write_stamp()
        # The stamp stays, so that the next run knows this script's environment even after an interrupted removal.
        for entry in VENV.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(str(entry))
            elif entry != STAMP:
                entry.unlink()
    check_disk()
    VENV.mkdir(exist_ok=True)
    write_stamp()
    step(f"environment {VENV.name} from {python}", [python, "-m", "venv", str(VENV)])
    interpreter = str(VENV / "bin" / "python")
    retries = [] if os.environ.get("PIP_RETRIES") else ["--retries", "1"]
    file = requirements_file("requirements-uv.txt", [locked("uv")])
    step(pinned("uv"), [interpreter, "-m", "pip", "install", "--no-deps", *verified(), *retries, "-r", file])


def uv_command() -> List[str]:
    return [str(VENV / "bin" / "uv"), "--no-progress"]


def install_packages(settings: PipSettings) -> None:
    for source in settings.dropped:
        say(f"  leaving out {without_login(source)}, which cannot be reached")
    target = ["--python", str(VENV / "bin" / "python")]
    uv = uv_command()
    rest = requirements(LOCK.read_text(encoding="utf-8"))
    if TORCH_APART:
        install_torch([*uv], settings._replace(options=[*target, *settings.options]))
        rest = [requirement for requirement in rest if not requirement.startswith("torch==")]
    file = requirements_file("requirements-of-this-install.txt", [exact(requirement) for requirement in rest])
    step(
        f"up to {len(rest)} locked packages",
        [*uv, "pip", "install", *target, "--no-deps", *verified(), "-r", file, *settings.options],
        settings.environment,
    )


def install_project() -> None:
    target = ["--python", str(VENV / "bin" / "python")]
    step(
        "this project, editable",
        [*uv_command(), "pip", "install", *target, "--no-deps", "--no-build-isolation", "--offline", "--editable", "."],
    )


def install() -> None:
    check_platform()
    if GPU.venv == VENV:
        check_compiler()
    stamp = read_stamp()
    fresh = not is_current(stamp)
    if not fresh and stamp.get("project") == project_digest():
        return
    started = time.monotonic()
    if fresh:
        python = find_interpreter()
        LOG.write_text(time.strftime("%Y-%m-%d %H:%M:%S") + f" {python}\n", encoding="utf-8")
        say(f"Installing VeriGRPO into {VENV} (about {NEEDED_GIB:.0f} GB; full output: {LOG})")
        if not TORCH_APART:
            say(f"  {driver_note()}")
        make_environment(python)
        install_packages(pip_settings(str(VENV / "bin" / "python")))
    install_project()
    version = interpreter_version(str(VENV / "bin" / "python"))
    assert version is not None, "the interpreter that has just installed the project does not run"
    write_stamp(environment=environment_digest(version[1]), project=project_digest())
    say(f"Installed in {time.monotonic() - started:.0f} s")


def lock(uv_options: List[str]) -> None:
    """Resolve pyproject.toml into both locks. Pins that still fit stay; `--upgrade` renews them."""
    pin = re.search(r'"(torch==[\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if pin is None:
        raise InstallError('pyproject.toml pins no torch: add `"torch==X.Y.Z"` to its dependencies.')
    settings = pip_settings(str(VENV / "bin" / "python"))
    resolved = ROOT / "build" / "resolved.txt"
    resolved.write_bytes(LOCK.read_bytes() if LOCK.exists() else b"")
    command = [*uv_command(), *LOCK_COMMAND.split(), *settings.options, *uv_options, "-o", str(resolved)]
    step("resolving pyproject.toml", command, settings.environment)
    packages = [package for package in requirements(resolved.read_text(encoding="utf-8")) if "'never'" not in package]
    LOCK.write_text(LOCK_HEADER + "\n".join([pin.group(1) + "+cpu", *packages]) + "\n", encoding="utf-8")
    say(f"  wrote {LOCK.relative_to(ROOT)}: {len(packages) + 1} packages")
    resolved.write_bytes(GPU.lock.read_bytes() if GPU.lock.exists() else b"")
    command = [*uv_command(), *GPU_LOCK_COMMAND.split(), *settings.options, *uv_options, "-o", str(resolved)]
    step("resolving pyproject.toml for GPUs", command, settings.environment)
    text = resolved.read_text(encoding="utf-8")
    GPU.lock.write_text(GPU_LOCK_HEADER + text, encoding="utf-8")
    say(f"  wrote {GPU.lock.relative_to(ROOT)}: {len(requirements(text))} packages")


def main(arguments: List[str]) -> int:
    try:
        LOG.parent.mkdir(exist_ok=True)
        with (LOG.parent / "install.lock").open("w") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another install is running in this clone; waiting for it")
                fcntl.flock(lock_file, fcntl.LOCK_EX)
            if arguments[:1] == ["lock"]:
                lock(arguments[1:])
            else:
                use(GPU if arguments[:1] == ["gpu"] else CPU)
                install()
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {error}: check that {ROOT} can be written to and that its disk is not full.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; the next run starts the install from the beginning.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
