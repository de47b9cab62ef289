"""BPG, VTM and programs of the user: by programs that stand in for them, which take their arguments and do compress."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.codecs.program import run_program
from magc_model.evaluate.codecs.protocol import ImageCodec
from magc_model.evaluate.codecs.registry import open_codec

BPGENC = """
import argparse
from PIL import Image
p = argparse.ArgumentParser(); p.add_argument("-q", type=int); p.add_argument("-f"); p.add_argument("-e")
p.add_argument("-o"); p.add_argument("source"); a = p.parse_args()
assert a.f in ("420", "444")
Image.open(a.source).save(a.o, "JPEG", quality=60 - a.q)
"""
BPGDEC = """
import argparse
from PIL import Image
p = argparse.ArgumentParser(); p.add_argument("-o"); p.add_argument("source"); a = p.parse_args()
Image.open(a.source).save(a.o, "PNG")
"""
VTM_ENCODER = """
import sys, zlib
a = sys.argv[1:]
if "--help" in a: print("VVCSoftware: VTM Encoder Version 23.3 [Linux]"); sys.exit()
assert open(a[a.index("-c") + 1]).read() == "intra"
assert "--InputChromaFormat=420" in a and "--InputBitDepth=10" in a
width, height, qp = (int(a[a.index(f) + 1]) for f in ("-wdt", "-hgt", "-q"))
data = open(a[a.index("-i") + 1], "rb").read()
assert len(data) == 2 * width * height * 3 // 2, "one picture of that size, 4:2:0, two bytes a sample"
step = 1 << max(qp - 40, 0) // 3
low = bytes(b // step * step if i % 2 == 0 else b for i, b in enumerate(data))
# A parameter set, then a picture whose unit has no start code inside.
body = zlib.compress(low).replace(b"\\0", b"\\xfe\\x01").replace(b"\\0", b"")
open(a[a.index("-b") + 1], "wb").write(b"\\0\\0\\0\\1\\0\\x79sps" + b"\\0\\0\\0\\1\\0\\x39" + low.hex().encode())
"""
VTM_DECODER = """
import sys
a = sys.argv[1:]
assert a[a.index("-d") + 1] == "10"
data = open(a[a.index("-b") + 1], "rb").read()
assert data.startswith(b"\\0\\0\\0\\1\\0\\x79")
open(a[a.index("-o") + 1], "wb").write(bytes.fromhex(data.split(b"\\0\\0\\0\\1\\0\\x39")[1].decode()))
"""
CODEC = """
import sys
from PIL import Image
what, *rest = sys.argv[1:]
if what == "encode":
    rate, source, target = rest
    Image.open(source).save(target, "JPEG", quality=int(float(rate)))
else:
    source, target = rest
    Image.open(source).save(target, "PNG")
"""


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth, with some grain; of an odd size."""
    rows, columns = np.mgrid[:37, :51]
    grain = np.random.default_rng(1).integers(0, 30, (37, 51))
    return np.stack([rows * 5 + grain, columns * 4 + grain, 100 + grain], axis=-1).astype(np.uint8)


def program(path: Path, source: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return path


def check(codec: ImageCodec, picture: np.ndarray) -> None:
    """What every codec keeps to."""
    assert isinstance(codec, ImageCodec)
    files = [codec.encode(picture, None, rate) for rate in codec.rates]
    assert [len(each.data) for each in files] == sorted(len(each.data) for each in files)
    assert codec.encode(picture, None, codec.rates[0]).data == files[0].data
    drawn = [codec.decode(each.data, None) for each in files]
    assert all(each.shape == picture.shape for each in drawn)
    errors = [np.abs(each.astype(float) - picture).mean() for each in drawn]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 8


def toml(folder: Path, **changes: str) -> Path:
    program(folder / "codec.py", CODEC)
    fields = {
        "label": '"Theirs"', "version": '"1.0"', "rates": "[5, 40, 90]",
        "encode": '["{here}/codec.py", "encode", "{rate}", "{input}", "{output}"]',
        "decode": '["{here}/codec.py", "decode", "{input}", "{output}"]',
    } | changes  # fmt: skip
    path = folder / "theirs.toml"
    path.write_text("\n".join(f"{name} = {value}" for name, value in fields.items() if value))
    return path


def test_bpg_by_its_programs(tmp_path: Path, picture: np.ndarray) -> None:
    program(tmp_path / "bpgenc", BPGENC)
    program(tmp_path / "bpgdec", BPGDEC)
    codec = open_codec(f"bpg:{tmp_path},rates=50/30/5,encoder=jctvc")
    assert codec.rates == (50, 30, 5)
    check(codec, picture)
    assert open_codec(f"bpg:{tmp_path}/bpgenc").version == codec.version


def test_vtm_by_its_programs(tmp_path: Path, picture: np.ndarray) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "encoder_intra_vtm.cfg").write_text("intra")
    program(tmp_path / "bin" / "EncoderAppStatic", VTM_ENCODER)
    program(tmp_path / "bin" / "DecoderAppStatic", VTM_DECODER)
    codec = open_codec(f"vtm:{tmp_path}/bin,rates=40")
    assert codec.version.startswith("VTM 23.3, encoder sha256:")
    encoded = codec.encode(picture, None, 40.0)
    assert encoded.data[:2] == bytes([51, 37]), "the size, in a byte a side"
    padded = 2 * 56 * 40 * 3 // 2
    assert encoded.stream_bytes == 2 + 2 * padded, "the picture's unit without start codes, parameter sets and size"
    drawn = codec.decode(encoded.data, None)
    assert drawn.shape == picture.shape
    assert np.abs(drawn.astype(float) - picture).mean() < 8


@pytest.mark.parametrize("name", ["stf", "hl-rscompnet"])
def test_named_checkpoints_by_a_program(name: str, tmp_path: Path, picture: np.ndarray) -> None:
    path = program(tmp_path / "run", CODEC)
    check(open_codec(f"{name}:{path},rates=5/40/90"), picture)
    with pytest.raises(UsageError, match="add rates=1/2/3"):
        open_codec(f"{name}:{path}")


def test_any_program_by_a_file(tmp_path: Path, picture: np.ndarray) -> None:
    codec = open_codec(f"command:{toml(tmp_path)}")
    assert codec.label == "Theirs"
    assert codec.version.startswith("1.0 (theirs.toml sha256:")
    assert not codec.uses_map
    check(codec, picture)
    assert open_codec(f"command:{tmp_path}/theirs.toml,rates=90/5").rates == (5, 90)
    with pytest.raises(UsageError, match="rate 7: its file has 5, 40, 90"):
        open_codec(f"command:{tmp_path}/theirs.toml,rates=7")
    with pytest.raises(UsageError, match="rate 7: expected one of 5, 40, 90"):
        codec.encode(picture, None, 7.0)


def test_a_program_is_given_the_map_that_it_asks_for(tmp_path: Path, picture: np.ndarray) -> None:
    source = "import sys\nfrom PIL import Image\nImage.open(sys.argv[1]).convert('RGB').save(sys.argv[2], 'PNG')\n"
    program(tmp_path / "draw", source)
    path = toml(tmp_path, decode='["{here}/draw", "{map}", "{output}", "{input}"]')
    codec = open_codec(f"command:{path}")
    assert codec.uses_map
    class_ids = (picture[..., 0] % 4).astype(np.uint8)
    data = codec.encode(picture, class_ids, 40.0).data
    assert np.array_equal(codec.decode(data, class_ids)[..., 1], class_ids)
    with pytest.raises(EvaluationError, match="reads a map, and this picture has none"):
        codec.decode(data, None)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"label": ""}, "lacks 'label'"),
    ({"lable": '"x"'}, "has 'lable'"),
    ({"version": "3"}, "label or version that is no text"),
    ({"rates": "[]"}, "rates \\[\\]"),
    ({"rates": '["a"]'}, "list of numbers"),
    ({"encode": '"run {input}"'}, "no list of texts as encode"),
    ({"decode": '["run", "{input}"]'}, "no {output} in decode"),
    ({"encode": "["}, "no TOML file"),
])  # fmt: skip
def test_a_wrong_file_is_a_sentence(changes: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        open_codec(f"command:{toml(tmp_path, **changes)}")
    assert "\n" not in str(caught.value)


def test_absent_programs_are_sentences(tmp_path: Path) -> None:
    for text, sentence in (
        ("bpg", "bpg needs FOLDER: write bpg:FOLDER"),
        (f"bpg:{tmp_path}", "has no bpgenc: give the folder"),
        (f"vtm:{tmp_path}/no", "has no EncoderApp or EncoderAppStatic"),
        (f"command:{tmp_path}/no.toml", "is no file"),
    ):
        with pytest.raises((EvaluationError, UsageError), match=sentence):
            open_codec(text)
    program(tmp_path / "EncoderApp", VTM_ENCODER)
    program(tmp_path / "DecoderApp", VTM_DECODER)
    with pytest.raises(EvaluationError, match="encoder_intra_vtm.cfg, which is no file: give VTM's"):
        open_codec(f"vtm:{tmp_path}")


@pytest.mark.parametrize(("source", "sentence"), [
    ("import sys; sys.exit('one\\nno such checkpoint')", "codec.py failed with exit code 1: no such checkpoint"),
    ("import sys; sys.exit(3)", "exit code 3: it said nothing"),
    ("pass", "the file that it was to write is absent"),
    ("import sys; open(sys.argv[-1], 'w')", "the file that it was to write is empty"),
])  # fmt: skip
def test_a_failing_program_is_a_sentence(source: str, sentence: str, tmp_path: Path, picture: np.ndarray) -> None:
    codec = open_codec(f"command:{toml(tmp_path)}")
    program(tmp_path / "codec.py", source)
    with pytest.raises(EvaluationError, match=sentence) as caught:
        codec.encode(picture, None, 40.0)
    assert "\n" not in str(caught.value)


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path, picture: np.ndarray) -> None:
    codec = open_codec(f"command:{toml(tmp_path)},timeout=1.5")
    pids = tmp_path / "pids"
    program(
        tmp_path / "codec.py",
        f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "100"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(100)
""",
    )
    start = time.monotonic()
    with pytest.raises(EvaluationError, match="was not done after 1.5 s and was ended"):
        codec.encode(picture, None, 40.0)
    assert time.monotonic() - start < 20
    for pid in map(int, pids.read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_program_that_lies_is_found_out(tmp_path: Path, picture: np.ndarray) -> None:
    """A decoder that gives no picture, or one of another size than was sent."""
    codec = open_codec(f"command:{toml(tmp_path)}")
    data = codec.encode(picture, None, 40.0).data
    program(tmp_path / "codec.py", "import sys; open(sys.argv[-1], 'w').write('done')")
    with pytest.raises(EvaluationError, match="what codec.py decoded is no PNG"):
        codec.decode(data, None)


def test_vtm_that_decodes_another_size_is_found_out(tmp_path: Path, picture: np.ndarray) -> None:
    (tmp_path / "encoder_intra_vtm.cfg").write_text("intra")
    program(tmp_path / "EncoderApp", VTM_ENCODER)
    program(tmp_path / "DecoderApp", VTM_DECODER + "\nopen(a[a.index('-o') + 1], 'ab').write(b'more')\n")
    codec = open_codec(f"vtm:{tmp_path}")
    data = codec.encode(picture, None, 51.0).data
    with pytest.raises(EvaluationError, match="bytes of planes where a picture of 56x40 has"):
        codec.decode(data, None)


def test_a_program_that_may_not_be_run_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no program")
    with pytest.raises(EvaluationError, match="cannot be run \\(Permission denied\\)"):
        run_program([str(path)])
