"""Which formats there are, and what each of them does to write a dataset."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from magc_data.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from magc_data.export.job import ExportJob


class Format(NamedTuple):
    """A form in which datasets can be handed on."""

    writer: str
    """'module:function'; the function takes an ExportJob and fills its folder."""
    holds_pixels: bool
    """Images and maps go along, so that the sources' licences must allow it."""
    passes: int = 1
    """How often it goes over all samples, for the bar."""


FORMATS = {
    "folders": Format("magc_data.export.folders:write_folders", holds_pixels=True),
    "huggingface": Format("magc_data.export.huggingface:write_huggingface", holds_pixels=True),
    "geotiff": Format("magc_data.export.geotiff:write_geotiff", holds_pixels=True, passes=2),
    "coco": Format("magc_data.export.coco:write_coco", holds_pixels=True),
    "recipe": Format("magc_data.export.recipe:write_recipe", holds_pixels=False),
}


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in FORMATS:
        raise UsageError(f"--format is '{name}': expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def writer_of(chosen: Format) -> Callable[[ExportJob], None]:
    """The function behind a format, loaded only now."""
    module, _, function = chosen.writer.partition(":")
    writer: Callable[[ExportJob], None] = getattr(importlib.import_module(module), function)
    return writer
