"""`pipelines/ablations.py` and `pipelines/paper_training.py`: that what they would run can be run, in the right order."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from magc_model import cli, train_cli

PIPELINES = Path(__file__).resolve().parents[3] / "pipelines"
PROGRAMS = {"magc": cli.app, "magc-train": train_cli.app}
ABLATIONS = (
    "vae", "no-cdm", "no-map", "no-spade", "map-in-decoder", "map-in-entropy", "steps", "samplers", "timing"
)  # fmt: skip


def said(pipeline: str, *arguments: str) -> list[list[str]]:
    """The commands of a dry run, without what stands before them for the shell."""
    done = subprocess.run(
        [sys.executable, str(PIPELINES / pipeline), *arguments, "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    return [line[1:] if "=" in line[0] else line for line in words]


def check(lines: list[list[str]]) -> None:
    """Each command is one, and starts from what one before it has made."""
    made: set[str] = set()
    for program, *arguments in lines:
        if program in PROGRAMS:
            PROGRAMS[program].parse_args(arguments, exit_on_error=False, print_error=False)
        if "--start-from" in arguments:
            assert arguments[arguments.index("--start-from") + 1] in made
        if program == "magc-train":
            out = arguments[arguments.index("--out") + 1]
            assert out not in made
            made.add(out)
        models = [word.split(",")[0] for word in arguments if word.startswith("magc:")]
        for model in (part for text in models for part in text.removeprefix("magc:").split("+")):
            assert model.removesuffix("/model") in made


@pytest.mark.parametrize("preset", ["tiny", "paper"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_says_commands_that_can_be_run(name: str, preset: str) -> None:
    lines = said("ablations.py", name, "--data", "d", "--test", "t", "--out", "o", "--preset", preset)
    check(lines)
    assert lines[-1][0] == ("pipelines/stage_times.py" if name == "timing" else "magc")


def test_all_ablations_share_their_models() -> None:
    lines = said("ablations.py", "all", "--data", "d", "--test", "t", "--out", "o", "--preset", "tiny")
    check(lines)
    assert sum(line[:2] == ["magc", "evaluate"] for line in lines) == len(ABLATIONS) - 1
    assert [line[1] for line in lines if line[0] == "magc-train"].count("vae") == 2, (
        "with and without map in the decoder"
    )


def test_what_is_ablated_is_all_that_differs() -> None:
    lines = said("ablations.py", "no-spade", "--data", "d", "--test", "t", "--out", "o", "--preset", "paper")
    runs = {line[-1]: line[1:-1] for line in lines if line[0] == "magc-train"}
    with_, without = runs["o/full-stage1"], runs["o/no-spade-stage1"]
    assert [word for word in without if word not in with_] == ["--no-map-in-transform"]
    assert [word for word in with_ if word not in without] == []


def test_the_papers_training_says_six_lambdas_on_three_gpus() -> None:
    options = ("--data", "d", "--base-model", "b", "--out", "o")
    program = [sys.executable, str(PIPELINES / "paper_training.py"), *options, "--dry-run"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    gpus = [line.split()[0] for line in done.stdout.splitlines()[:-1]]
    assert [gpus.count(f"CUDA_VISIBLE_DEVICES={n}") for n in range(3)] == [4, 4, 4]
    lines = said("paper_training.py", *options)
    check(lines)
    assert [line[1] for line in lines] == ["stage1", "stage2"] * 6 + ["evaluate"]
    lambdas = [line[line.index("--lambda") + 1] for line in lines if "--lambda" in line]
    assert lambdas == ["0.1", "0.2", "0.39", "0.67", "0.91", "1.25"]
    assert sum(word.count("stage2/model") for word in lines[-1]) == 6
