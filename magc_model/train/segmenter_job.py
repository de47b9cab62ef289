"""The training of a segmenter, from its options to its directory.

    datasets, options ─► classes of the maps ─► run directory ─► network ─► loop ─► RUN/model

One way of training: run directory, loop and division into training and held-out samples are those of the stages.
"""

from collections.abc import Callable
from typing import Any

import torch

from magc_data.version import __version__
from magc_model.config import SEGMENTER_TRAINING, SegmenterConfig, StageConfig, to_document
from magc_model.data import Joined, Source, TrainingBatches
from magc_model.segmenter_model import SegmenterModel, build_segmenter
from magc_model.train.job import Divided, Outcome, divide, open_accelerator, pace_of
from magc_model.train.loop import Trainer
from magc_model.train.options import DescentOptions, SegmenterOptions, with_given
from magc_model.train.run_directory import FORMAT_VERSION, find_run, open_run
from magc_model.train.segmenter_stage import SegmenterStage, class_shares

STAGE = "segmenter"


def train_segmenter(options: SegmenterOptions, descent: DescentOptions, say: Callable[[str], None]) -> Outcome | None:
    """Train a segmenter, from where the run is to its end.

    Returns:
        What is there now; nothing in the processes that only help the first.

    Raises:
        MagcModelError, MagcDataError: it cannot be done; the message says what was found and the way out.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    accelerator = open_accelerator(options.device)
    parts = _divide(options)
    training = with_given(SEGMENTER_TRAINING, descent, options.accumulate)
    batches = TrainingBatches(
        parts.training,
        crop_px=training.crop_px,
        batch_size=training.batch_size,
        seed=options.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    classes = class_shares(parts.training)
    config = SegmenterConfig(classes=classes.classes)
    document = _document(options, config, training, parts, accelerator.num_processes)
    directory = find_run(options.out, document, keep=options.keep)
    if directory.is_finished:
        return Outcome(directory.model, training.steps, was_finished=True) if accelerator.is_main_process else None
    torch.manual_seed(options.seed)
    network = build_segmenter(config)
    stage = SegmenterStage(network, config, classes, parts.held_out)
    if accelerator.is_main_process:
        open_run(options.out, document, keep=options.keep)
    accelerator.wait_for_everyone()
    trainer = Trainer(stage, directory, training, pace_of(options), accelerator)
    trainer.resume()
    if accelerator.is_main_process:
        run = f"{options.out} from step {trainer.step:,}" if trainer.step else options.out
        say(
            f"{STAGE}: training {trainer.weight_count:,} weights on {len(parts.training):,} samples of "
            f"{', '.join(map(str, options.data))} ({len(parts.held_out):,} held out), {training.steps:,} steps of "
            f"{training.batch_size * accelerator.num_processes} on {accelerator.device.type}, into {run}; classes: "
            f"{', '.join(each.name for each in config.classes)}"
        )
    trainer.run(batches)
    if not accelerator.is_main_process:
        return None
    SegmenterModel(config, network.to("cpu")).save_pretrained(directory.model)
    directory.finish()
    return Outcome(directory.model, training.steps, was_finished=False)


def _divide(options: SegmenterOptions) -> Divided:
    """What to train on and what to look at, of each dataset as the stages divide it."""
    divided = [divide(each) for each in options.data]
    return Divided(_joined([each.training for each in divided]), _joined([each.held_out for each in divided]))


def _joined(parts: list[Any]) -> Source:
    return parts[0] if len(parts) == 1 else Joined(parts)


def _document(
    options: SegmenterOptions, config: SegmenterConfig, training: StageConfig, parts: Divided, processes: int
) -> dict[str, Any]:
    """What the run does, for config.json: everything that decides where it ends, and what does not beside it."""
    return {
        "format_version": FORMAT_VERSION,
        "magc_version": __version__,
        "stage": STAGE,
        "data": {
            "path": [str(each) for each in options.data],
            "digest": parts.training.digest,
            "samples": len(parts.training),
            "held_out": len(parts.held_out),
        },
        "model": to_document(config),
        "training": to_document(training),
        "seed": options.seed,
        "precision": options.precision.value,
        "accumulate": options.accumulate,
        "compile": options.compile,
        "processes": processes,
        "device": options.device.value,
        "workers": options.workers,
        "checkpoint_every": options.checkpoint_every,
        "validate_every": options.validate_every,
        "keep": options.keep,
    }
