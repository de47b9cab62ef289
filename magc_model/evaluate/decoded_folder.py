"""Pictures that another program has decoded: `decoded:FOLDER[,streams=FOLDER]` in a codec's place.

They carry the names of their originals (a tile's key, or the file's name in a folder of pictures, without the suffix);
so do the streams, whose sizes are the bytes.
"""

import functools
import hashlib
from pathlib import Path

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.protocol import Picture
from magc_model.picture_files import WRITABLE, read_picture

PREFIX = "decoded:"
PICTURE_SUFFIXES = tuple(WRITABLE)


def is_decoded_folder(text: str) -> bool:
    """Whether a codec's name means a folder of decoded pictures."""
    return text.startswith(PREFIX)


class DecodedFolder:
    """A folder of decoded pictures, and the folder of the streams they were decoded from.

    Args:
        text: `decoded:FOLDER[,streams=FOLDER]`.

    Raises:
        UsageError: it is not of that form.
        EvaluationError: there is no such folder.
    """

    def __init__(self, text: str) -> None:
        folder, *options = text.removeprefix(PREFIX).split(",")
        streams = [each.removeprefix("streams=") for each in options if each.startswith("streams=")]
        if not folder or len(options) > 1 or len(streams) != len(options):
            raise UsageError(f"'{text}' is no folder of decoded pictures: expected {PREFIX}FOLDER[,streams=FOLDER]")
        self._pictures = _Named(Path(folder), PICTURE_SUFFIXES)
        self._streams = _Named(Path(streams[0]), ()) if streams else None

    def picture(self, key: str) -> Picture:
        """The decoded picture of an original.

        Raises:
            EvaluationError: there is none, or several.
            DataError: it cannot be read.
        """
        path = self._pictures[key]
        return read_picture(path.read_bytes(), str(path))

    def stream_bytes(self, key: str) -> int | None:
        """Size of the file that it was decoded from; none without a folder of streams."""
        return None if self._streams is None else self._streams[key].stat().st_size

    @functools.cached_property
    def version(self) -> str:
        """What tells one content of the folders from another: names, sizes and times of their files."""
        sha256 = hashlib.sha256()
        for each in self._pictures.files() + (self._streams.files() if self._streams else []):
            facts = each.stat()
            sha256.update(f"{each} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        return sha256.hexdigest()[:16]


class _Named:
    """Files of a folder and its subfolders by their names without the suffix."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...]) -> None:
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is no folder: expected one with a file for every original")
        self._folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in folder.rglob("*"):
            if path.is_file() and (not suffixes or path.suffix.lower() in suffixes):
                self._files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)

    def files(self) -> list[Path]:
        """All of them, in order."""
        return sorted(path for some in self._files.values() for path in some)

    def __getitem__(self, key: str) -> Path:
        found = self._files.get(key, [])
        if len(found) != 1:
            raise EvaluationError(
                f"{self._folder} holds {len(found) or 'no'} files called {key}, with whatever suffix: expected one a "
                "picture, named as its original"
            )
        return found[0]


def folder_label(text: str) -> str:
    """What tables and plots call it: the name of the folder of pictures."""
    return Path(text.removeprefix(PREFIX).partition(",")[0]).resolve().name


def folder_version(text: str) -> str:
    """What tells one content of the folders from another."""
    return DecodedFolder(text).version
