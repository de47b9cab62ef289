"""Datasets on disk: the only code that writes or reads their files."""
