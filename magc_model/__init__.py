"""MAGC: a codec for aerial images that knows the map (arXiv 2409.01935)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magc_model.codec import MagcCodec
    from magc_model.model import MagcModel
    from magc_model.reconstruct import Reconstructor

__all__ = ["MagcCodec", "MagcModel", "Reconstructor"]

_HOMES = {
    "MagcCodec": "magc_model.codec",
    "MagcModel": "magc_model.model",
    "Reconstructor": "magc_model.reconstruct",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command lines must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
