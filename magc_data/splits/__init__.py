"""Which side of a split a tile is on, and how far apart the sides are: pure functions over tile columns and rows."""
