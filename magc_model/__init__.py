"""MAGC: a codec for aerial images that knows the map (arXiv 2409.01935)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magc_model.codec import MagcCodec
    from magc_model.model import MagcModel
    from magc_model.reconstruct import Reconstructor
    from magc_model.scene.open import open_file as open  # noqa: A004  (as rasterio calls it)

__all__ = ["MagcCodec", "MagcModel", "Reconstructor", "open"]

_HOMES = {
    "MagcCodec": "magc_model.codec:MagcCodec",
    "MagcModel": "magc_model.model:MagcModel",
    "Reconstructor": "magc_model.reconstruct:Reconstructor",
    "open": "magc_model.scene.open:open_file",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command lines must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
