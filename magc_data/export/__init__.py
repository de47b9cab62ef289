"""A dataset in the forms that other programs read: one file a format, `formats.py` their table, `job.py` the rest."""
