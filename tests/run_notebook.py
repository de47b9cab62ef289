"""Runs a notebook as its reader would, but offline."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable

REPOSITORY = Path(__file__).resolve().parent.parent


class Shown(NamedTuple):
    """What is below the cells."""

    html: list[str]
    pictures: list[Image.Image]
    text: str


def executed(name: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, cell_timeout_s: int = 120) -> Shown:
    """All cells of a notebook of the repository, from top to bottom; it must be stored without outputs."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient, which is in magc[dev]")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient, which is in magc[dev]")
    # The sample's package is read from the tests' cache; every other address leads nowhere.
    monkeypatch.setenv("MAGC_CACHE_DIR", str(cache))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)  # stripped
    nbclient.NotebookClient(
        notebook, timeout=cell_timeout_s, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    data = [output.get("data", {}) for output in outputs]
    return Shown(
        html=_all(data, "text/html"),
        pictures=[Image.open(io.BytesIO(base64.b64decode(png))) for png in _all(data, "image/png")],
        text="\n".join([output.get("text", "") for output in outputs] + _all(data, "text/plain")),
    )


def _all(data: Iterable[dict[str, Any]], kind: str) -> list[str]:
    return [each[kind] for each in data if kind in each]
