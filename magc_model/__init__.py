"""MAGC: a codec for aerial images that knows the map (arXiv 2409.01935)."""
