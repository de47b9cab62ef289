"""`magc-train`: the command line. Answers go to stdout, everything else to stderr, errors as one plain sentence.

    magc-train vae    --preset tiny --data DATA --out VAE
    magc-train stage1 --data DATA --start-from VAE --out STAGE1
    magc-train stage2 --data DATA --start-from STAGE1 --out STAGE2
    magc-train segmenter --data DATA --out SEGMENTER
    magc-train baseline --architecture elic --data DATA --out ELIC

Several GPUs, or several processes on the CPU: `torchrun --nproc-per-node 2 -m magc_model.train_cli stage1 ...`; several
machines need --out, the data and the cache folder (MAGC_CACHE_DIR) on a disk that all of them share.
Exit codes: 0 done, 1 the job failed, 2 bad usage, 130 interrupted. Networks are imported inside the commands, so that
`--help` is quick.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from magc_data.command_line import new_app, run
from magc_data.errors import MagcDataError
from magc_model.errors import MagcModelError
from magc_model.host_memory import keep_memory
from magc_model.train.baseline_options import BaselineOptions, BaselineTraining
from magc_model.train.options import DescentOptions, ModelOptions, SegmenterOptions, StageOptions, TrainOptions

if TYPE_CHECKING:
    from magc_model.train.job import Outcome

app = new_app(
    "magc-train",
    "Train a MAGC model in three stages: vae (image autoencoder), stage1 (compression), stage2 (diffusion); "
    "and a segmenter, which measures what codecs leave. "
    "A run that was interrupted continues when the same command is given again. On several GPUs: "
    "torchrun --nproc-per-node 2 -m magc_model.train_cli stage1 ...; several machines need --out, the data and the "
    "cache folder (MAGC_CACHE_DIR) on a disk that all of them share.",
)

Options = Annotated[TrainOptions, Parameter(name="*")]
Model = Annotated[ModelOptions | None, Parameter(name="*")]
Training = Annotated[StageOptions | None, Parameter(name="*")]


@app.command
def vae(options: Options, model: Model = None, training: Training = None) -> int:
    """Train the image autoencoder (tiny), or the map-aware decoder of the base model's (paper)."""
    return _train("vae", options, model, training)


@app.command
def stage1(options: Options, model: Model = None, training: Training = None) -> int:
    """Train the latent compression module: rate against distortion of the latent."""
    return _train("stage1", options, model, training)


@app.command
def stage2(options: Options, model: Model = None, training: Training = None) -> int:
    """Train the denoiser that puts back what compression took; the bitrate stays as stage 1 left it."""
    return _train("stage2", options, model, training)


@app.command
def segmenter(
    options: Annotated[SegmenterOptions, Parameter(name="*")],
    training: Annotated[DescentOptions | None, Parameter(name="*")] = None,
) -> int:
    """Train a segmenter on the datasets' own maps: it says whether a codec leaves things where the map has them."""
    from magc_model.train.segmenter_job import train_segmenter

    return _tell(train_segmenter(options, training or DescentOptions(), _say))


@app.command
def baseline(
    options: Annotated[BaselineOptions, Parameter(name="*")],
    training: Annotated[BaselineTraining | None, Parameter(name="*")] = None,
) -> int:
    """Train a learned codec to compare with (CompressAI's, and HiFiC-, MS-ILLM- and map-fine-tunes of them)."""
    from magc_model.train.baseline_job import train_baseline

    return _tell(train_baseline(options, training or BaselineTraining(), _say))


def _train(stage: str, options: TrainOptions, model: ModelOptions | None, training: StageOptions | None) -> int:
    from magc_model.train.job import train

    return _tell(train(stage, options, model or ModelOptions(), training or StageOptions(), _say))


def _tell(outcome: Outcome | None) -> int:
    if outcome is not None:
        done = "was finished already: nothing to do" if outcome.was_finished else f"{outcome.steps} steps done"
        sys.stdout.write(f"{outcome.model}: {done}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    keep_memory()
    run(
        app,
        arguments,
        "magc-train",
        (MagcModelError, MagcDataError),
        "interrupted: the newest checkpoint is kept, and the same command continues from it",
        requirement="magc[model]",
    )


if __name__ == "__main__":
    main()
