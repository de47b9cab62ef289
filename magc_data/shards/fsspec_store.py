"""Objects in services that fsspec knows besides S3: listed, put whole and deleted, without conditions on a put."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.errors import UsageError
from magc_data.shards.object_store import StorageError, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


class FsspecStore(NamedTuple):
    """The objects under an address. Two builds at once are not told from one: a put replaces whatever is there."""

    address: str

    def listing(self) -> dict[str, Stored]:
        """Every object."""

        def found(files: Any, folder: str) -> dict[str, Any]:
            files.invalidate_cache(folder)
            return dict(files.find(folder, detail=True)) if files.exists(folder) else {}

        listed = self._ask("", found)
        start = len(self._ask("", lambda _, folder: folder.rstrip("/"))) + 1
        versions = ("ETag", "etag")
        return {
            path[start:]: Stored(each["size"], str(next((each[name] for name in versions if each.get(name)), "")))
            for path, each in listed.items()
            if each["type"] == "file"
        }

    def get(self, name: str) -> bytes:
        """An object's content."""
        return bytes(self._ask(name, lambda files, path: files.cat_file(path)))

    def put(self, name: str, content: bytes | Path, replaces: Stored | None) -> None:  # noqa: ARG002 - see the class
        """Write an object; in parts, if it is large, as the service's package sees fit."""
        if isinstance(content, bytes):
            self._ask(name, lambda files, path: files.pipe_file(path, content))
        else:
            self._ask(name, lambda files, path: files.put_file(str(content), path))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are not missed."""
        for name in names:

            def remove(files: Any, path: str) -> None:
                files.invalidate_cache(path)
                if files.exists(path):
                    files.rm_file(path)

            self._ask(name, remove)

    def abort_uploads(self) -> int:
        """These services forget what was not put to its end by themselves."""
        return 0

    def _ask(self, name: str, request: Callable[[Any, str], Any]) -> Any:
        address = f"{self.address.rstrip('/')}/{name}".rstrip("/")
        try:
            from fsspec.core import url_to_fs

            return request(*url_to_fs(address))
        except ImportError as error:
            raise UsageError(f"{address} needs a package that is not installed here: {error}") from None
        except Exception as error:  # noqa: BLE001 - each of fsspec's file systems has errors of its own
            what = " ".join(f"{type(error).__name__} {error}".split())
            raise StorageError(
                f"{address} cannot be used ({what}): what is finished is kept, and the same command continues"
            ) from None
