"""From a place on Earth to aligned image/map pairs.

The stages, in the order in which data flows through them: sources -> features -> rasterize -> sample -> shards.
"""

from magc_data.version import __version__

__all__ = ["__version__"]
