"""`magc`: the codec's command line. Answers go to stdout, everything else to stderr, errors as one plain sentence.

Exit codes: 0 done, 1 the job failed, 2 bad usage, 130 interrupted.
Heavy modules are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from magc_data.command_line import new_app, run
from magc_data.errors import MagcDataError
from magc_model.config import Device, InferencePrecision
from magc_model.errors import MagcModelError, UsageError
from magc_model.host_memory import keep_memory

app = new_app("magc", "Map-assisted generative compression of aerial images.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the answer as JSON.")]

PUBLISHED_SCHEME = "sgdm"
"""The built-in class table whose colours are those of the maps that the published checkpoints were trained with."""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")


def _answer_json(document: dict[str, Any]) -> None:
    _answer(json.dumps(document, indent=2, ensure_ascii=False))


@app.command
def convert_checkpoint(
    file: Annotated[Path, Parameter(help="The checkpoint: a .ckpt of the authors, or its tensors as .safetensors.")],
    *,
    out: Annotated[Path, Parameter(help="Model directory to write.")],
    lambda_: Annotated[
        float, Parameter(name="--lambda", help="What it was trained with: recorded only, the file does not say.")
    ] = 0.39,
    base_model: Annotated[
        str | None,
        Parameter(help="Stable Diffusion 2.1-base, folder or hub name: for the text embedding, if the file has none."),
    ] = None,
    data: Annotated[
        Path | None,
        Parameter(help="Dataset whose class colours its maps will have. Default: the sgdm scheme's, approximately."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Turn the authors' published checkpoint into a model directory that computes the same."""
    from magc_data.schema.classes import load_scheme
    from magc_model.base_model import empty_prompt_embedding, find_base_model
    from magc_model.config import MapClass
    from magc_model.convert import convert_checkpoint as convert
    from magc_model.convert import published_config
    from magc_model.model import check_destination

    check_destination(out)
    if data is None:
        classes = tuple(MapClass(*each) for each in load_scheme(PUBLISHED_SCHEME).classes)
    else:
        from magc_data.shards.manifest import read_manifest

        table = read_manifest(data)["classes"]
        classes = tuple(MapClass(each["id"], each["name"], tuple(each["color"])) for each in table)
    config = published_config(classes, lambda_)
    text = None if base_model is None else empty_prompt_embedding(find_base_model(base_model))
    model = convert(file, config, text)
    fingerprint = model.save_pretrained(out)
    can_denoise = bool(model.config.denoiser.text_tokens)
    if as_json:
        _answer_json({"out": str(out), "fingerprint": fingerprint, "can_denoise": can_denoise})
    else:
        _answer(f"{out}: model {fingerprint}")
    if not can_denoise:
        _say(
            f"{file} holds no text encoder, so the model has no embedding of the empty prompt: it compresses, but "
            "cannot denoise until it is converted again with --base-model"
        )
    return 0


@app.command
def reconstruct(
    data: Annotated[Path, Parameter(help="Folder of a dataset.")],
    *,
    model: Annotated[str, Parameter(help="Model directory, or a repository on the hub.")],
    out: Annotated[Path, Parameter(help="PNG file to write.")] = Path("reconstructions.png"),
    count: Annotated[int, Parameter(help="Samples to show, at most; from all over the dataset.")] = 6,
    split: Annotated[str | None, Parameter(help="Split to take them from. Default: all.")] = None,
    rate: Annotated[float | None, Parameter(help="Gained models: 0 (lowest lambda) to number of lambdas - 1.")] = None,
    sampler: Annotated[str, Parameter(help="ddpm (the paper's), ddim, dpm-solver++ or unipc.")] = "ddpm",
    steps: Annotated[int, Parameter(help="Calls of the denoiser; 0 for none.")] = 50,
    start_t: Annotated[int | None, Parameter(help="Start from the guide, noised to this timestep.")] = None,
    seed: Annotated[int, Parameter(help="Of the noise.")] = 0,
    batch_size: Annotated[int, Parameter(help="Pictures at a time.")] = 8,
    device: Annotated[Device, Parameter(help="auto, cpu or cuda.")] = Device.AUTO,
    precision: Annotated[InferencePrecision, Parameter(help="fp32, bf16 or fp16.")] = InferencePrecision.FP32,
    compile_: Annotated[bool, Parameter(name="--compile", negative="", help="Compile the UNet.")] = False,
    as_json: Json = False,
) -> int:
    """Compress samples, decode the bytes again, and draw original, map and reconstruction with their cost."""
    from magc_data.dataset import MagcDataset
    from magc_model.data import require_maps
    from magc_model.diffusion.noise import NoiseWindow
    from magc_model.model import MagcModel
    from magc_model.reconstruct import Reconstructor, Sampling, torch_device
    from magc_model.sheet import chosen_samples, draw, measure

    if not 1 <= count <= 200:
        raise UsageError(f"--count is {count}: expected 1 to 200")
    sampling = Sampling(sampler=sampler, steps=steps, start_t=start_t)
    samples = chosen_samples(data, split, count)
    network = MagcModel.from_pretrained(model)
    require_maps(MagcDataset(data, split), network.config.map)
    reconstructor = Reconstructor(
        network,
        device=torch_device(device),
        precision=precision,
        compile=compile_,
        batch_size=batch_size,
    )
    rows = measure(reconstructor, samples, sampling, [NoiseWindow(seed)] * len(samples), rate)
    draw(out, rows, reconstructor.model.config.map.classes)
    if as_json:
        _answer_json({"out": str(out), "samples": [row.figures._asdict() for row in rows]})
        return 0
    for row in rows:
        _answer(
            f"{row.figures.key}  {row.figures.bytes} bytes  {row.figures.bpp:.4f} bpp  {row.figures.psnr_db:.2f} dB"
        )
    _answer(f"{out}: {len(rows)} samples")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, turn every expected failure into a sentence and an exit code."""
    keep_memory()
    run(
        app,
        arguments,
        "magc",
        (MagcModelError, MagcDataError),
        "interrupted: nothing was written, run the same command again",
        requirement="magc[model]",
    )
