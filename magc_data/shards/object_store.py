"""What a build needs of object storage: a listing, and objects that appear whole or not at all.

A put says what it replaces, and is refused if something else is there meanwhile: so two builds into one address cannot
mix, without a lock that a killed build would leave behind (docs/decisions/0016-object-storage.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from magc_data.errors import MagcDataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

S3_PROTOCOLS = ("s3", "s3a")
WHOLE_PUT_PROTOCOLS = ("abfs", "abfss", "az", "gcs", "gs", "memory")
"""Other services of which fsspec can write objects whole; sftp, ftp and the like show files that are half there."""


class StorageError(MagcDataError):
    """Object storage refuses, or does not answer although it was asked again."""


class ReplacedError(StorageError):
    """Something else than expected stands where an object was to be put."""


class Stored(NamedTuple):
    """An object as it is listed."""

    size: int
    """In bytes."""
    version: str
    """What tells it from another object of the same name (S3's ETag); empty where the service has no such thing."""


class ObjectStore(Protocol):
    """The objects under an address, by their path below it. Holds no connection, so it pickles."""

    @property
    def address(self) -> str:
        """Where they are, for a person."""

    def listing(self) -> dict[str, Stored]:
        """Every object."""

    def get(self, name: str) -> bytes:
        """An object's content."""

    def put(self, name: str, content: bytes | Path, replaces: Stored | None) -> None:
        """Write an object.

        Args:
            name: its path below the address.
            content: bytes, or a file that holds them.
            replaces: what is there as far as is known; None: nothing.

        Raises:
            ReplacedError: something else is there, and it is not this content either.
        """

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are not missed."""

    def abort_uploads(self) -> int:
        """Give up all uploads that were begun and not ended, whoever began them; returns how many there were."""


def open_store(address: str) -> ObjectStore:
    """The store of an address that a build can write to; makes no request.

    Raises:
        UsageError: it is none, or a package for it is not installed.
    """
    protocol, _, rest = address.partition("://")
    if "@" in rest.partition("/")[0]:
        # Not repeated: it may hold a password.
        raise UsageError(
            f"the {protocol} address of --out has an @ in it: credentials belong in the environment or a profile"
        )
    if protocol in S3_PROTOCOLS:
        from magc_data.shards.s3_store import S3Store, split_address

        split_address(address)
        return S3Store(address)
    if protocol in WHOLE_PUT_PROTOCOLS:
        from magc_data.shards.fsspec_store import FsspecStore

        return FsspecStore(address)
    raise UsageError(
        f"--out {address} cannot be built into: expected a folder, s3:// or one of "
        f"{', '.join(f'{each}://' for each in WHOLE_PUT_PROTOCOLS)}"
    )
