"""Other people's programs: run without a shell, for a bounded time, with failures as one sentence."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from magc_model.errors import EvaluationError

TIMEOUT_S = 1800.0
"""Unless told otherwise: the slowest reference encoders take minutes for a scene."""

_GRACE_S = 10.0
_MOST_TEXT = 300


class Ran(NamedTuple):
    """What a program said."""

    output: bytes
    """On its standard output."""
    said: str
    """On its standard error."""


def run_program(
    command: Sequence[str],
    *,
    data: bytes = b"",
    timeout_s: float = TIMEOUT_S,
    folder: Path | None = None,
) -> Ran:
    """Run a program to its end.

    Args:
        command: program and arguments.
        data: what it reads from its standard input.
        timeout_s: after which it is ended, with all that it has started.
        folder: to run it in.

    Raises:
        EvaluationError: it cannot be started, fails, or takes too long.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            start_new_session=True,  # so that what it starts can be ended with it
        )
    except OSError as error:
        raise EvaluationError(
            f"{command[0]} cannot be run ({error.strerror}): expected a program that may be executed"
        ) from None
    with process:
        try:
            output, complaints = process.communicate(data, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise EvaluationError(
                f"{name} was not done after {timeout_s:g} s and was ended: allow it more with timeout=SECONDS"
            ) from None
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise EvaluationError(f"{name} failed with exit code {process.returncode}: {_last(complaints or output)}")
    return Ran(output, complaints.decode(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_GRACE_S)


def _last(complaints: bytes) -> str:
    """The last thing that it said, on one line."""
    lines = [" ".join(each.split()) for each in complaints.decode(errors="replace").splitlines()]
    said = [each for each in lines if each]
    return said[-1][-_MOST_TEXT:] if said else "it said nothing"
