"""Every error that magc_data raises on purpose: one sentence saying what was found, what was expected, the way out."""

WAY_OUT = "`magc-data verify` lists what is damaged, `magc-data heal` repairs it"
"""What to do about a damaged dataset, to end a sentence with."""


class MagcDataError(Exception):
    """Base class; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class UsageError(MagcDataError):
    """What the user asked for cannot be done as asked (bad bbox, unknown source, contradicting options)."""

    exit_code = 2


class SchemeError(UsageError):
    """A class scheme (YAML) is not valid."""


class SourceError(MagcDataError):
    """A source cannot be read: a missing or unreadable file, a service that refuses for good."""


class FetchError(SourceError):
    """A service did not answer properly although it was asked again: running the same command later may work."""


class DatasetError(MagcDataError):
    """A dataset on disk is unfinished, damaged, or of another build than the one asked for."""
