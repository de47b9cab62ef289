"""Every error that magc_model raises on purpose: one sentence saying what was found, what was expected, the way out."""


class MagcModelError(Exception):
    """Base class; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class UsageError(MagcModelError):
    """What the user asked for cannot be done as asked (unknown preset, contradicting options, wrong image size)."""

    exit_code = 2


class ModelError(MagcModelError):
    """A model directory is missing, unfinished, damaged, or of another kind than the job needs."""


class BaseModelError(MagcModelError):
    """The Stable Diffusion base model cannot be found or read."""


class CheckpointError(MagcModelError):
    """A checkpoint of a run or a foreign state dict cannot be used."""


class DataError(MagcModelError):
    """The training data do not fit the model: no maps, another class table, too small."""


class BitstreamError(MagcModelError):
    """Bytes that are no stream, a damaged one, or one for another model."""


class TrainingError(MagcModelError):
    """Training cannot go on: the loss is no number any more, or it diverges."""


class EvaluationError(MagcModelError):
    """An evaluation cannot be made as asked: a program, package or weights are absent, or an encoder failed."""
