"""The paper's ablations (tables 2 and 3, figure 13) and more, each one command.

    python pipelines/ablations.py no-map --data train --test heldout --out ablations          # trains what it needs
    python pipelines/ablations.py all    --data train --test heldout --out ablations
    python pipelines/ablations.py no-map ... --dry-run                                        # says the commands
    python pipelines/ablations.py all    ... --preset paper --train=--base-model --train=PATH  # Stable Diffusion's

An ablation trains the same model without (or with) one thing, by the switches of `magc-train`, with the same data, seed
and number of steps as the model it is set against, and evaluates both in one report: OUT/report-NAME. Models are shared
between ablations, and whatever ends the command, the same command goes on there.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

STAGES = ("vae", "stage1", "stage2")
STAGE_TIMES = "pipelines/stage_times.py"
PROGRAMS = {
    "magc": ("-c", "from magc_model.cli import main; main()"),
    "magc-train": ("-c", "from magc_model.train_cli import main; main()"),
    STAGE_TIMES: (str(Path(__file__).with_name("stage_times.py")),),
}
SAMPLER_STEPS = 20
TIMING = "timing"


class Training(NamedTuple):
    """A model: what each stage is told beyond the common options, and the model whose stages before are its own."""

    switches: dict[str, tuple[str, ...]]
    shares: str | None = None
    """Another model; its stages before the first one named in `switches` are taken."""


FULL = "full"
GAINED = ("--rate", "gained")
"""One model for all rates, so that Bjontegaard deltas can be taken."""
WITHOUT_AUTOENCODER = ("paper",)
"""Presets that stand on a base model's autoencoder: only a decoder that reads the map has anything to learn."""
TRAININGS = {
    FULL: Training({"vae": ("--no-map-in-decoder",), "stage1": ("--no-map-in-entropy", *GAINED), "stage2": ()}),
    "no-map": Training({"stage1": ("--no-map", *GAINED), "stage2": ("--no-map",)}, shares=FULL),
    "no-spade": Training(
        {"stage1": ("--no-map-in-transform", "--no-map-in-entropy", *GAINED), "stage2": ()}, shares=FULL
    ),
    "map-in-entropy": Training({"stage1": ("--map-in-entropy", *GAINED), "stage2": ()}, shares=FULL),
    "map-in-decoder": Training(
        {"vae": ("--map-in-decoder",), "stage1": ("--no-map-in-entropy", *GAINED), "stage2": ()}
    ),
}
"""The paper's model has the map in the transform (SPADE) and in the denoiser (SAM), and in neither decoder nor entropy
model. What a stage settles need not be said again to the next."""


class Ablation(NamedTuple):
    """Codecs that are set against each other, as `magc evaluate` names them; {MODEL} stands for a trained model."""

    codecs: tuple[str, ...]
    says: str


ABLATIONS = {
    "vae": Ablation(
        ("magc:{full},only=autoencoder", "magc:{full},steps={steps}"),
        "the autoencoder alone, the upper bound of whatever stands on it (table 2)",
    ),
    "no-cdm": Ablation(
        ("magc:{full},steps=0", "magc:{full},steps={steps}"), "without the conditional diffusion model (table 2)"
    ),
    "no-map": Ablation(("magc:{no-map},steps={steps}", "magc:{full},steps={steps}"), "without any map (table 3)"),
    "no-spade": Ablation(
        ("magc:{no-spade},steps={steps}", "magc:{full},steps={steps}"), "without the map in the transform (table 3)"
    ),
    "map-in-decoder": Ablation(
        ("magc:{map-in-decoder},steps={steps}", "magc:{full},steps={steps}"),
        "with the map in the image decoder, at full resolution",
    ),
    "map-in-entropy": Ablation(
        ("magc:{map-in-entropy},steps={steps}", "magc:{full},steps={steps}"), "with the map in the entropy model"
    ),
    "steps": Ablation(
        tuple(f"magc:{{full}},steps={count}" for count in (1, 2, 5, 10, 20, 50, 100)),
        "denoising steps from 1 to 100 (figure 13)",
    ),
    "samplers": Ablation(
        tuple(
            f"magc:{{full}},steps={SAMPLER_STEPS},sampler={name}" for name in ("ddpm", "ddim", "dpm-solver++", "unipc")
        ),
        f"samplers at {SAMPLER_STEPS} steps",
    ),
    TIMING: Ablation(("{full}",), "milliseconds of each stage of compressing and decompressing a tile"),
}


class Command(NamedTuple):
    """One program with its arguments."""

    program: str
    arguments: tuple[str, ...]

    def shown(self) -> str:
        """As one would type it."""
        return shlex.join((self.program, *self.arguments))


def trainings(name: str) -> tuple[str, ...]:
    """The models that an ablation needs, those first that others take stages from."""
    wanted = [model for model in TRAININGS if any(f"{{{model}}}" in codec for codec in ABLATIONS[name].codecs)]
    shared = [TRAININGS[model].shares for model in wanted]
    return tuple(model for model in TRAININGS if model in (*wanted, *shared))


def run_folder(out: Path, model: str, stage: str) -> Path:
    """Where a model's stage is trained: with the model that it is shared with, if it is."""
    training = TRAININGS[model]
    first = next(stage for stage in STAGES if stage in training.switches)
    if training.shares is not None and STAGES.index(stage) < STAGES.index(first):
        return run_folder(out, training.shares, stage)
    return out / f"{model}-{stage}"


def commands(name: str, options: argparse.Namespace) -> list[Command]:
    """All of an ablation, in order."""
    found = []
    for model in trainings(name):
        before = ["--preset", options.preset]
        for stage in STAGES:
            folder = run_folder(options.out, model, stage)
            switches = TRAININGS[model].switches.get(stage)
            if stage == "vae" and options.preset in WITHOUT_AUTOENCODER and "--map-in-decoder" not in (switches or ()):
                continue
            if switches is not None:
                common = ("--data", str(options.data), "--seed", str(options.seed), "--device", options.device)
                steps = () if options.train_steps is None else ("--steps", str(options.train_steps))
                arguments = (stage, *common, *before, *switches, *steps, *options.train, "--out", str(folder))
                found.append(Command("magc-train", arguments))
            before = ["--start-from", str(folder)]
    folders = {model: str(run_folder(options.out, model, "stage2") / "model") for model in TRAININGS}
    if name == TIMING:
        times = ("--model", folders[FULL], "--data", str(options.test), "--out", str(options.out / "stage-times.json"))
        return [*found, Command(STAGE_TIMES, times)]
    codecs = [codec.format(steps=options.steps, **folders) for codec in ABLATIONS[name].codecs]
    given_codecs = [word for codec in codecs for word in ("--codec", codec)]
    report = ("--anchor", codecs[-1], "--seed", str(options.seed), "--report", str(options.out / f"report-{name}"))
    found.append(Command("magc", ("evaluate", str(options.test), *given_codecs, *report, *options.evaluate)))
    return found


def main() -> None:
    """Run it."""
    lines = "\n".join(f"  {name:<15} {each.says}" for name, each in ABLATIONS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=(*ABLATIONS, "all"))
    parser.add_argument("--data", type=Path, required=True, help="dataset to train on")
    parser.add_argument("--test", type=Path, required=True, help="dataset to evaluate on, with none of the same ground")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and reports")
    parser.add_argument("--preset", default="paper", help="paper or tiny")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50, help="denoising steps, where they are not what is varied")
    parser.add_argument("--train-steps", type=int, help="optimiser steps of every stage; default: the preset's")
    parser.add_argument("--train", action="append", default=[], help="one more word for magc-train; several times")
    parser.add_argument(
        "--evaluate", action="append", default=[], help="one more word for magc evaluate; several times"
    )
    parser.add_argument("--dry-run", action="store_true", help="say the commands, run nothing")
    options = parser.parse_args()
    wanted = list(ABLATIONS) if options.name == "all" else [options.name]
    for command in dict.fromkeys(each for name in wanted for each in commands(name, options)):
        print(command.shown(), flush=True)
        if not options.dry_run:
            done = subprocess.run([sys.executable, *PROGRAMS[command.program], *command.arguments], check=False)
            if done.returncode:
                sys.exit(done.returncode)


if __name__ == "__main__":
    main()
