"""`python -m sandbox run FILE`, `python -m sandbox doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from sandbox.bounds import bounds
from sandbox.outside.languages import find_tool
from sandbox.outside.service import Sandbox
from sandbox.types import IsolationLevel, Language, Limits, ProgramStatus, SandboxError

_LANGUAGES = {".py": Language.PYTHON, ".cpp": Language.CPP, ".js": Language.JAVASCRIPT, ".sh": Language.BASH}
_TOOLS = {Language.CPP: "g++", Language.JAVASCRIPT: "node", Language.BASH: "bash"}
_FAILED = 125  # env(1), timeout(1) and others exit with this code if they fail themselves


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="Run untrusted programs.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a program file; it reads the standard input of this command")
    run.add_argument("file", type=Path)
    run.add_argument("--language", choices=[str(language) for language in Language], help="default: by the file's name")
    run.add_argument("--seconds", type=float, default=10.0, help="seconds of real and of processor time (default 10)")
    run.add_argument("--memory", type=int, default=512, help="MiB for all processes together (default 512)")
    run.add_argument("--level", choices=[level.name.lower() for level in IsolationLevel], default="confined")
    commands.add_parser("doctor", help="show which layers this machine has, why others are missing, and what to do")
    return parser


def _run(options: argparse.Namespace) -> int:
    language = Language(options.language) if options.language else _LANGUAGES.get(options.file.suffix)
    if language is None:
        known = ", ".join(_LANGUAGES)
        print(f"{options.file}: the file's ending is not one of {known}; give --language", file=sys.stderr)
        return _FAILED
    stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    limits = Limits(wall_s=options.seconds, memory_bytes=options.memory << 20)
    with Sandbox(level=IsolationLevel[options.level.upper()]) as sandbox:
        result = sandbox.run(options.file.read_bytes(), stdin, limits, language)
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    summary = (
        f"[{result.status.value}, exit code {result.exit_code}, {result.wall_s:.3f} s, "
        f"processor {result.cpu_s:.3f} s, {result.memory_bytes / (1 << 20):.1f} MiB, "
        f"isolation {result.isolation.level.name.lower()}]"
    )
    print(summary, file=sys.stderr)
    if result.exit_code is None:
        print(result.reason, file=sys.stderr)
        return _FAILED
    if result.status is ProgramStatus.OK:
        return 0
    return result.exit_code if result.exit_code > 0 else 128 - result.exit_code


def _doctor() -> int:
    """Print the layers that are in force on this machine; return 0 if programs run and the default level is reached."""
    with Sandbox(level=IsolationLevel.NONE) as sandbox:
        isolation = sandbox.isolation
        works = sandbox.run("print(6 * 7)").stdout == b"42\n"
    print(f"isolation level: {isolation.level.name.lower()} ({'runs programs' if works else 'CANNOT run a program'})")
    for layer in isolation.active:
        print(f"  in force  {layer}")
    for item in isolation.missing:
        print(f"  missing   {item.layer}: {item.reason}\n            remedy: {item.remedy}")
    for bound in bounds(isolation):
        print(f"  {bound.kind:9} {bound.limit}: {bound.how}")
    if os.geteuid() != 0:
        print("  (started without root: programs run as this user, in a separate user namespace if there is one)")
    for language, name in _TOOLS.items():
        path = find_tool(name)
        print(f"  {language.value:11} {path or f'{name} is not installed: its programs get the status no compiler'}")
    return 0 if works and isolation.level >= IsolationLevel.CONFINED else 1


def main() -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args()
    try:
        return _run(options) if options.command == "run" else _doctor()
    except (SandboxError, OSError) as problem:
        print(problem, file=sys.stderr)
        return _FAILED


if __name__ == "__main__":
    sys.exit(main())
