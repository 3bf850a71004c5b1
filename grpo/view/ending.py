"""Why a run ended early, from the newest log of its driver. The run itself keeps no other record of its end."""

from __future__ import annotations

import re
from pathlib import Path

from grpo.report import run_files
from grpo.report.logs import JOB_ENDED, JOB_FAILED, JOB_INTERRUPTED
from grpo.visible import visible

# Number of bytes at the end of the log that are read. The longest record is a quarter of this size.
_TAIL_BYTES = 1 << 18
_LONGEST_ERROR = 1000
# The first line of a record is not indented, so no text inside a record can look like a record.
_END = re.compile(
    rf"^\S+Z \S+ +driver \d+ \S+: ({'|'.join(map(re.escape, (JOB_ENDED, JOB_FAILED, JOB_INTERRUPTED)))})$", re.MULTILINE
)
# Python prints the causes of an exception before the exception.
_AFTER_CAUSES = re.compile(
    r"^    (?:The above exception was the direct cause of the following exception|"
    r"During handling of the above exception, another exception occurred):$",
    re.MULTILINE,
)
# The log indents a record's text by four spaces. Python indents the stack further, but not the exception's message.
_MESSAGE = re.compile(r"^    (?!Traceback \(most recent call last\):)(\S.*)$", re.MULTILINE)


def driver_log_path(run_dir: Path) -> Path:
    """The path of the driver's newest log."""
    return run_dir / run_files.LOGS / run_files.log_of("driver")


def read_ending(run_dir: Path) -> str | None:
    """A sentence that says that the run failed or was interrupted; None if the run goes on, ended well, or has no log.

    If the run failed, the sentence has the first line of the error, and the path of the log.
    """
    path = driver_log_path(run_dir)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    ends = list(_END.finditer(text))
    if not ends or ends[-1][1] == JOB_ENDED:
        return None
    if ends[-1][1] == JOB_INTERRUPTED:
        return f"The run was interrupted. Its log: {visible(str(path))}"
    record = re.split(r"^\S", text[ends[-1].end() :], maxsplit=1, flags=re.MULTILINE)[0]
    message = _MESSAGE.search(_AFTER_CAUSES.split(record)[-1])
    error = f": {message[1][:_LONGEST_ERROR]}" if message else ""
    return visible(f"The run ended with an error{error}\nIts log: {path}")
