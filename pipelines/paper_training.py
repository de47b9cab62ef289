"""The paper's training: six lambdas, each in two stages, spread over GPUs.

    python pipelines/paper_training.py --data paper/dataset --base-model sd2.1-base --out runs --dry-run
    python pipelines/paper_training.py --data paper/dataset --base-model sd2.1-base --out runs --gpus 0 1 2

Each GPU takes a lambda, trains stage 1 (250,000 steps of 16) and stage 2 (150,000 of 48), then takes the next. Whatever
ends the command, the same command goes on there: runs that are finished are left alone, others continue from their
newest checkpoint. At last one report evaluates all six on the test split.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from magc_model.config import PAPER_LAMBDAS

PROGRAMS = {
    "magc": "from magc_model.cli import main; main()",
    "magc-train": "from magc_model.train_cli import main; main()",
}
STANDARD_CODECS = ("vvc", "hevc", "jpeg2000")


class Command(NamedTuple):
    """One program with its arguments."""

    program: str
    arguments: tuple[str, ...]

    def shown(self) -> str:
        """As one would type it."""
        return shlex.join((self.program, *self.arguments))


def model_name(lambda_: float) -> str:
    """What the runs of a lambda are called."""
    return f"lambda-{lambda_:g}"


def trainings(options: argparse.Namespace, lambda_: float) -> list[Command]:
    """The two stages of one lambda."""
    common = ("--data", str(options.data), "--seed", str(options.seed), "--precision", options.precision)
    folder = options.out / model_name(lambda_)
    first = ("--preset", options.preset, "--lambda", f"{lambda_:g}")
    base = () if options.base_model is None else ("--base-model", options.base_model)
    if options.start_from is not None:
        first = ("--start-from", options.start_from, "--lambda", f"{lambda_:g}")
    stage1 = ("stage1", *common, *first, *base, *options.stage1, "--out", f"{folder}-stage1")
    accumulate = ("--accumulate", str(options.accumulate)) if options.accumulate > 1 else ()
    stage2 = ("stage2", *common, "--start-from", f"{folder}-stage1", *accumulate, *options.stage2)
    return [Command("magc-train", stage1), Command("magc-train", (*stage2, "--out", f"{folder}-stage2"))]


def evaluation(options: argparse.Namespace) -> Command:
    """All lambdas as one curve in one report."""
    models = [f"{options.out / model_name(each)}-stage2/model" for each in options.lambdas]
    codecs = [word for codec in (f"magc:{'+'.join(models)}", *STANDARD_CODECS) for word in ("--codec", codec)]
    arguments = ("evaluate", str(options.data), "--split", "test", *codecs, "--report", str(options.out / "report"))
    return Command("magc", (*arguments, *options.evaluate))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset with the splits train and test")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--base-model", help="Stable Diffusion 2.1-base: a folder, or a repository on the hub")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1, 2], help="their numbers; one lambda on each")
    parser.add_argument("--lambdas", type=float, nargs="+", default=list(PAPER_LAMBDAS))
    parser.add_argument("--preset", default="paper", help="paper; tiny to try it out")
    parser.add_argument("--start-from", help="a trained autoencoder, which the preset tiny needs")
    parser.add_argument("--precision", default="bf16", help="bf16; the paper trained in fp32")
    parser.add_argument("--accumulate", type=int, default=6, help="pieces of stage 2's batch of 48: for 24 GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage1", action="append", default=[], help="one more word for stage1; several times")
    parser.add_argument("--stage2", action="append", default=[], help="one more word for stage2; several times")
    parser.add_argument("--evaluate", action="append", default=[], help="one more word for magc evaluate")
    parser.add_argument("--dry-run", action="store_true", help="say the commands, run nothing")
    options = parser.parse_args()
    if options.dry_run:
        for number, lambda_ in enumerate(options.lambdas):
            gpu = options.gpus[number % len(options.gpus)]
            for command in trainings(options, lambda_):
                print(f"CUDA_VISIBLE_DEVICES={gpu} {command.shown()}")
        print(evaluation(options).shown())
        return
    sys.exit(_train_all(options) or _run(evaluation(options), None))


def _train_all(options: argparse.Namespace) -> int:
    """Exit code of the first that fails; what runs beside it is let finish."""
    free: Queue[int] = Queue()
    for gpu in options.gpus:
        free.put(gpu)

    def train(lambda_: float) -> int:
        gpu = free.get()
        try:
            return next((code for each in trainings(options, lambda_) if (code := _run(each, gpu))), 0)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(len(options.gpus)) as pool:
        return next((code for code in pool.map(train, options.lambdas) if code), 0)


def _run(command: Command, gpu: int | None) -> int:
    print(f"{'' if gpu is None else f'GPU {gpu}: '}{command.shown()}", flush=True)
    environment = os.environ if gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    program = [sys.executable, "-c", PROGRAMS[command.program], *command.arguments]
    return subprocess.run(program, check=False, env=environment).returncode


if __name__ == "__main__":
    main()
