"""Whether a folder lies on a disk that several machines write to, where SQLite's write-ahead log does not work."""

from __future__ import annotations

from pathlib import Path

from magc_data.errors import UsageError

NETWORK_FILE_SYSTEMS = frozenset({
    "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.sshfs", "gfs2",
    "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
})  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")


def refuse_shared_cache(folder: Path, mounts: Path = _MOUNTS) -> None:
    """Refuse a cache folder that several machines would write to at once; says nothing where it cannot tell.

    Raises:
        UsageError: it lies on a network file system.
    """
    kind = file_system_of(folder, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise UsageError(
            f"the cache folder {folder} is on a network file system ({kind}), where caches break when several "
            "machines write to them: set MAGC_CACHE_DIR to a disk of each machine's own, such as $TMPDIR"
        )


def file_system_of(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """The kind of file system that a folder is on, or would be; None where the platform does not say."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    resolved = folder.resolve()
    found: tuple[int, str] | None = None
    for line in lines:
        head, separator, tail = line.partition(" - ")
        fields = head.split()
        if not separator or len(fields) < 5:
            continue
        point = Path(fields[4].encode("latin-1", "backslashreplace").decode("unicode_escape"))
        # Later lines are mounted over earlier ones.
        if resolved.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = (len(point.parts), tail.split()[0])
    return None if found is None else found[1]
