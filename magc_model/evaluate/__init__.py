"""Measuring codecs: rate against quality on tiles and scenes, with intervals, tables and a report."""
