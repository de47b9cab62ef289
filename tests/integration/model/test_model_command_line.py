"""The commands without what only they need: said in a sentence, in an environment that lacks it."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if (name + ".").startswith(sys.argv[1] + "."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nowhere())
from importlib import import_module
import_module(sys.argv[2]).main(sys.argv[3:])
"""


def run_without(module: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, module, program, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "program", "arguments", "sentence"),
    [
        (
            "torch",
            "magc_model.cli",
            ("reconstruct", "data", "--model", "model"),
            'magc: this command needs PyTorch and other packages, not installed here: pip install "magc[model]"\n',
        ),
        (
            "torch",
            "magc_model.train_cli",
            ("vae", "--data", "data", "--out", "run"),
            'magc-train: this command needs PyTorch and other packages, not installed here: pip install "magc[model]"\n',
        ),
        (
            "pyarrow",
            "magc_data.cli",
            ("verify", "data"),
            'magc-data: this command needs the package pyarrow, not installed here: pip install "magc"\n',
        ),
    ],
)
def test_a_missing_package_is_a_sentence(module: str, program: str, arguments: tuple[str, ...], sentence: str) -> None:
    ended = run_without(module, program, *arguments)
    assert (ended.returncode, ended.stderr) == (1, sentence)


@pytest.mark.parametrize("program", ["magc_model.cli", "magc_model.train_cli"])
def test_help_needs_no_torch(program: str) -> None:
    ended = run_without("torch", program, "--help")
    assert ended.returncode == 0
    assert "Usage:" in ended.stdout


def test_a_missing_module_of_ours_is_no_expected_failure() -> None:
    ended = run_without("magc_model.model", "magc_model.cli", "reconstruct", "data", "--model", "model")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
