"""`magc`: the codec's command line. Answers go to stdout, everything else to stderr, errors as one plain sentence.

Exit codes: 0 done, 1 the job failed, 2 bad usage, 3 decoded but for damaged parts, 130 interrupted.
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
from magc_model.config import IN_THE_BOX, Device, InferencePrecision
from magc_model.errors import MagcModelError, UsageError
from magc_model.evaluate.request import EvaluateOptions
from magc_model.host_memory import keep_memory

app = new_app("magc", "Map-assisted generative compression of aerial images.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the answer as JSON.")]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

LOST_CHUNKS = 3
"""Exit code of a decoding that is done but for parts of a scene that were damaged."""

PUBLISHED_SCHEME = "sgdm"
"""The built-in class table whose colours are those of the maps that the published checkpoints were trained with."""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")


def _answer_json(document: dict[str, Any]) -> None:
    _answer(json.dumps(document, indent=2, ensure_ascii=False))


def _say_json(document: dict[str, Any]) -> None:
    _say(json.dumps(document, indent=2, ensure_ascii=False))


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
    steps: Annotated[
        int | None, Parameter(help="Calls of the denoiser; 0 for none. Default: 50, 1 of a one-step generator.")
    ] = None,
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
    from magc_model.reconstruct import Reconstructor, Sampling, torch_device, usual_steps
    from magc_model.sheet import chosen_samples, draw, measure

    if not 1 <= count <= 200:
        raise UsageError(f"--count is {count}: expected 1 to 200")
    samples = chosen_samples(data, split, count)
    network = MagcModel.from_pretrained(model)
    steps = usual_steps(network) if steps is None else steps
    sampling = Sampling(sampler=sampler, steps=steps, start_t=start_t)
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


Stream = Annotated[Path, Parameter(allow_leading_hyphen=True, help="A .magc file; - for standard input.")]
ModelOption = Annotated[
    str, Parameter(help="Model directory, a repository on the hub, or tiny: the one in the box (docs/models/tiny.md).")
]
DeviceOption = Annotated[Device, Parameter(help="auto, cpu or cuda.")]
MapOption = Annotated[
    Path | None,
    Parameter(
        name="--map",
        help="Class ids on the picture's own grid: an 8-bit PNG as magc-data writes it, or a raster of one band.",
    ),
]
OsmOption = Annotated[
    str | None,
    Parameter(
        help="Make the map on a georeferenced picture's own grid: an extract (.osm.pbf, .gpkg, ...) or overpass."
    ),
]
SchemeOption = Annotated[
    str | None,
    Parameter(help="Class scheme for --osm, name or file. Default: the built-in one of the model's classes."),
]
QuietOption = Annotated[bool, Parameter(negative="", help="No progress bar.")]


@app.command
def compress(
    image: Annotated[
        Path,
        Parameter(
            allow_leading_hyphen=True,
            help="PNG, JPEG, WebP, GeoTIFF or any raster of GDAL's, of any size; - for standard input; a folder of "
            "these; or a dataset of magc-data.",
        ),
    ],
    *,
    model: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            help="Model directory, a repository on the hub, or tiny: the one in the box (docs/models/tiny.md). Several "
            "of one rate each, with --bytes or --bpp: that one is taken which comes nearest.",
        ),
    ] = (IN_THE_BOX,),
    out: Annotated[
        Path,
        Parameter(
            name=("--out", "-o"),
            allow_leading_hyphen=True,
            help="The .magc file to write; - for standard output; a folder for a folder.",
        ),
    ],
    map_: MapOption = None,
    osm: OsmOption = None,
    no_map: Annotated[bool, Parameter(negative="", help="There is no map of this ground.")] = False,
    scheme: SchemeOption = None,
    split: Annotated[str | None, Parameter(help="Of a dataset: the samples of this split only.")] = None,
    quality: Annotated[
        float | None, Parameter(help="Gained models: 1 (smallest) to number of lambdas. Default: the middle.")
    ] = None,
    lambda_: Annotated[float | None, Parameter(name="--lambda", help="The same as a weight of the distortion.")] = None,
    bytes_: Annotated[
        int | None,
        Parameter(
            name="--bytes",
            help="At most so many bytes, all in: gained models come within some per cent, and give a scene's chunks "
            "what does most good.",
        ),
    ] = None,
    bpp: Annotated[float | None, Parameter(help="The same as bits a pixel.")] = None,
    embed_map: Annotated[
        bool, Parameter(negative="", help="Store the map in the file, for receivers that have none.")
    ] = False,
    seed: Annotated[int, Parameter(help="Of the noise, unless the receiver chooses another.")] = 0,
    device: DeviceOption = Device.AUTO,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> int:
    """Compress a picture, a georeferenced scene or a folder of them, with the map, into .magc files."""
    from magc_model.codec import MagcCodec, Rate
    from magc_model.compress_job import MapChoice, Wish, compress_folder, compress_one

    rates = {"--quality": quality, "--lambda": lambda_, "--bytes": bytes_, "--bpp": bpp}
    if len(given := [name for name, value in rates.items() if value is not None]) > 1:
        raise UsageError(f"{' and '.join(given)} were given: expected one of {', '.join(rates)}")
    if bpp is not None and not 0 < bpp <= 24:
        raise UsageError(f"--bpp is {bpp:g}: expected more than 0 and at most 24")
    if len(model) > 1 and (bytes_ is None and bpp is None):
        raise UsageError("several models were given: expected --bytes or --bpp, by which one of them is chosen")
    choice = MapChoice(file=map_, osm=osm, none=no_map, scheme=scheme)
    wish = Wish(rate=Rate(quality=quality, lambda_=lambda_), max_bytes=bytes_, bpp=bpp, embed_map=embed_map, seed=seed)
    if image.is_dir():
        if len(model) > 1:
            raise UsageError("several models were given for a folder: expected one")
        codec = MagcCodec.from_pretrained(model[0], draws=False, device=device)
        figures, failures = compress_folder(codec, image, out, choice, wish, split=split, quiet=quiet)
        total, pixels = sum(each.bytes for each in figures), sum(each.width_px * each.height_px for each in figures)
        document = {
            "out": str(out),
            "pictures": len(figures),
            "failed": [each._asdict() for each in failures],
            "bytes": total,
            "mean_bytes": round(total / len(figures), 1) if figures else None,
            "bpp": round(8 * total / pixels, 5) if figures else None,
        }
        for each in failures:
            _say(f"magc: {each.name}: {each.reason}")
        if as_json:
            _answer_json(document)
        else:
            mean = f", {document['mean_bytes']} bytes each, {document['bpp']} bpp" if figures else ""
            _answer(f"{out}: {len(figures)} streams, {len(failures)} failed{mean}; report.csv has each")
        return 1 if failures else 0
    if split is not None:
        raise UsageError("--split is for datasets: leave it away")
    data = _read(image) if str(image) == "-" else None
    if data is None and not image.is_file():
        raise UsageError(f"{image} is no file: expected a picture, a folder of pictures or a dataset")
    codecs = [MagcCodec.from_pretrained(each, draws=False, device=device) for each in model]
    result = compress_one(codecs, image, data, choice, wish, quiet=quiet)
    _write(out, result.stream)
    shown = {name.rstrip("_"): value for name, value in result.figures._asdict().items() if value is not None}
    say, say_json = (_say, _say_json) if str(out) == "-" else (_answer, _answer_json)
    if as_json:
        say_json({"out": str(out), **shown})
        return 0
    one = result.figures
    parts = {"map": one.embedded_map_bytes, "mask": one.mask_bytes}
    named = "".join(f", {size} of them the {name}" for name, size in parts.items() if size)
    by = f" (the model's only rate, lambda {one.lambda_:g})" if one.lambda_ is not None and (bytes_ or bpp) else ""
    say(f"{out}: {one.bytes} bytes{named}, {one.bpp:.4f} bpp, {one.width_px}x{one.height_px} pixels{by}")
    return 0


@app.command
def decompress(
    stream: Stream,
    *,
    model: ModelOption = IN_THE_BOX,
    out: Annotated[
        Path,
        Parameter(
            name=("--out", "-o"),
            allow_leading_hyphen=True,
            help="PNG, JPEG, WebP or GeoTIFF (.tif, cloud-optimised) to write; - for a PNG on stdout.",
        ),
    ],
    map_: MapOption = None,
    osm: OsmOption = None,
    scheme: SchemeOption = None,
    steps: Annotated[
        int | None,
        Parameter(
            help="Calls of the denoiser; 0 for none, the most faithful. Default: 50; 0 of a one-step generator, which "
            "the model in the box has: 1 lets it make up texture as rough as the ground's."
        ),
    ] = None,
    sampler: Annotated[str, Parameter(help="ddpm (the paper's), ddim, dpm-solver++ or unipc.")] = "ddpm",
    start_t: Annotated[int | None, Parameter(help="Start from the guide, noised to this timestep.")] = None,
    fidelity: Annotated[
        float | None,
        Parameter(help="Between what the denoiser draws (0, the default) and what the symbols alone say (1)."),
    ] = None,
    seed: Annotated[int | None, Parameter(help="Of the noise. Default: the stream's.")] = None,
    window: Annotated[
        tuple[int, int, int, int] | None,
        Parameter(help="Column, row, width and height of what to decode, in pixels. Default: all."),
    ] = None,
    uncertainty: Annotated[
        int, Parameter(help="Draw with so many seeds; a fourth band of the .tif says where they disagree.")
    ] = 1,
    strict: Annotated[
        bool, Parameter(negative="", help="Refuse a map that is not the sender's, and a damaged scene.")
    ] = False,
    max_pixels: Annotated[
        int | None, Parameter(help="Largest picture to decode. Default: 4194304 (2048x2048); of a .tif 1073741824.")
    ] = None,
    device: DeviceOption = Device.AUTO,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> int:
    """Decompress a .magc file, or a window of it, into a picture that says what it was made by.

    Exit code 3: done, but parts of the scene were damaged and are missing.
    """
    from magc_model.codec import MAX_PIXELS, MagcCodec
    from magc_model.compress_job import MapChoice
    from magc_model.decompress_job import GEOTIFF_SUFFIXES, Drawing, decompress_one
    from magc_model.picture_files import output_format
    from magc_model.scene.grid import Window
    from magc_model.scene.open import mapped

    is_geotiff = out.suffix.lower() in GEOTIFF_SUFFIXES
    kind = "PNG" if str(out) == "-" else None if is_geotiff else output_format(out)
    if map_ is not None and osm is not None:
        raise UsageError("--map and --osm were both given: expected one of them")
    data = _read(stream) if str(stream) == "-" else mapped(stream)
    drawing = Drawing(
        steps=steps,
        sampler=sampler,
        start_t=start_t,
        fidelity=fidelity,
        seed=seed,
        draws=uncertainty,
        window=None if window is None else Window(*window),
        strict=strict,
        max_pixels=max_pixels,
    )
    codec = MagcCodec.from_pretrained(
        model,
        draws=drawing.needs_generator,
        device=device,
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
    )
    choice = MapChoice(file=map_, osm=osm, scheme=scheme)
    done = decompress_one(codec, data, choice, drawing, out, kind, quiet=quiet)
    if done.picture is not None:
        _write(out, done.picture)
    say, say_json = (_say, _say_json) if str(out) == "-" else (_answer, _answer_json)
    if as_json:
        lost = {"damaged_chunks": done.damaged_chunks} if done.damaged_chunks else {}
        say_json({"out": str(out), "width_px": done.width_px, "height_px": done.height_px, **done.origin, **lost})
    else:
        lost_text = f", {len(done.damaged_chunks)} damaged chunks missing" if done.damaged_chunks else ""
        size = f"{done.width_px}x{done.height_px} pixels"
        say(f"{out}: {size} from {len(data)} bytes, {done.origin['steps']} steps{lost_text}")
    return LOST_CHUNKS if done.damaged_chunks else 0


@app.command
def info(stream: Stream, *, as_json: Json = False) -> int:
    """Say what a .magc file is, without a model."""
    from magc_model.stream_info import described

    data = _read(stream)
    document = described(data)
    if as_json:
        _answer_json(document)
    else:
        for name, value in document.items():
            _answer(f"{name:<14} {'-' if value is None else value}")
    return 0


@app.command
def evaluate(
    data: Annotated[Path, Parameter(help="Dataset made by magc-data, or a folder of pictures.")],
    options: Annotated[EvaluateOptions, Parameter(name="*")],
    *,
    as_json: Json = False,
) -> int:
    """Measure codecs on tiles and scenes: rate against quality, with intervals, as a page, a text and JSON.

    A run that was ended continues when the same command is given again.
    """
    from magc_model.evaluate.job import evaluate as measured

    try:
        done = measured(data, options)
    except KeyboardInterrupt:
        _say("magc: interrupted: what is measured is kept, and the same command continues")
        return INTERRUPTED
    if as_json:
        _answer_json({"report": str(options.report), "points": len(done.points)})
    else:
        _answer(f"{options.report / 'report.html'}: {len(done.points)} points; report.md and results.json beside it")
    return 0


@app.command
def codecs(*, as_json: Json = False) -> int:
    """Name the codecs that `magc evaluate` knows, and what each needs."""
    from magc_model.evaluate.codecs.registry import CODECS, listed

    if as_json:
        _answer_json({name: {"options": list(entry.options), "help": entry.help} for name, entry in CODECS.items()})
        return 0
    _answer(listed())
    return 0


@app.command
def doctor(
    *,
    model: ModelOption = IN_THE_BOX,
    tiles: Annotated[int, Parameter(help="Synthetic tiles to decode in each configuration.")] = 64,
    as_json: Json = False,
) -> int:
    """Find out whether streams travel: decode the same ones in every way this machine can, and compare every bit."""
    from magc_model.doctor import environment, examine
    from magc_model.model import MagcModel

    if not 1 <= tiles <= 100_000:
        raise UsageError(f"--tiles is {tiles}: expected 1 to 100000")
    network = MagcModel.from_pretrained(model, draws=False)
    machine = environment()
    if not as_json:
        for name, value in machine.items():
            _answer(f"{name:<9} {value}")
    findings = examine(
        network,
        tiles,
        lambda found: None if as_json else _answer(f"{found.wrong_tiles} of {found.tiles} tiles wrong: {found.name}"),
    )
    travels = not any(each.wrong_tiles for each in findings)
    if as_json:
        document = {"travels": travels, "configurations": [each._asdict() for each in findings], **machine}
        _answer_json(document)
    elif travels:
        _answer("Streams of this model decode to the same symbols in all of them: they will travel.")
    else:
        _answer(
            "Streams of this model do NOT decode to the same symbols here: use this machine neither to compress nor to "
            "decompress, and please report the lines above."
        )
    return 0 if travels else 1


def _read(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    from magc_data.atomic import write_atomically

    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_atomically(path, data)


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
