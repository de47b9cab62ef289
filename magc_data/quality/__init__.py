"""Signals of a tile's quality, from its pixels alone; docs/quality.md says what they can and cannot tell.

Every signal is a quotient of two whole numbers (or the root of one), so it is the same on every machine: sums of whole
numbers do not depend on the order in which a processor adds them.
"""
