"""`magc evaluate` as a whole: right figures, the same ones however they came about, and a sentence for what cannot be."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_tiles import held_out_tiles

from magc_model.evaluate.footprint import footprint
from magc_model.evaluate.job import evaluate
from magc_model.evaluate.request import EvaluateOptions
from magc_model.evaluate.results import Results


@pytest.fixture(scope="session")
def pictures(embedded_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two held-out tiles."""
    folder = tmp_path_factory.mktemp("pictures")
    for each in held_out_tiles(embedded_cache)[:2]:
        Image.fromarray(each.image).save(folder / f"{each.key}.png")
    return folder


def measured(data: Path, report: Path, *codecs: str, **options: object) -> Results:
    """An evaluation in this process, against the first codec."""
    given = {"anchor": codecs[0].partition(",")[0], "workers": 1, "quiet": True, **options}
    return evaluate(data, EvaluateOptions(report=report, codecs=codecs, **given))  # type: ignore[arg-type]


# --- time and memory -------------------------------------------------------------------------------------------------


def test_a_codec_is_not_charged_for_the_memory_of_the_process_that_asks(pictures: Path) -> None:
    ballast = np.ones(100_000_000)  # 800 MB
    picture = np.asarray(Image.open(next(pictures.iterdir())))
    found = footprint("jpeg", 50.0, picture, None)
    assert ballast.all()
    assert 20 < found.peak_mb < 300
    assert 0 < found.decode_s < found.encode_s < 5


STAND_IN = """#!{python}
import sys, PIL.Image
_, verb, *rate, source, target = sys.argv
PIL.Image.open(source).save(target, "JPEG", quality=int(rate[0])) if verb == "encode" else (
    PIL.Image.open(source).save(target, "PNG"))
"""


def test_a_program_whose_rates_have_to_be_given_is_measured_at_these(pictures: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    results = measured(pictures, tmp_path / "report", f"stf:{program},rates=10/60", anchor=f"stf:{program}")
    assert [each.rate for each in results.points] == [10.0, 60.0]
    assert results.points[0].file_bytes < results.points[1].file_bytes
    assert [each.codec for each in results.run.footprints] == [f"stf:{program}"]


def test_time_and_memory_belong_to_the_rates_and_the_item_that_they_were_taken_at(
    pictures: Path, tmp_path: Path
) -> None:
    first = measured(pictures, tmp_path, "jpeg2000,rates=0.05").run.footprints
    assert measured(pictures, tmp_path, "jpeg2000,rates=0.05").run.footprints == first
    assert measured(pictures, tmp_path, "jpeg2000,rates=0.5").run.footprints != first
