"""Bytes from symbols and back: exact fixed-point networks, integer tables, the coder."""
