"""Everything that can be measured: each a class with one shape, named by one text."""
