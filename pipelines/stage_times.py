"""Where a model's time goes: loading it, and tile by tile of 256 px, on one thread or several.

python pipelines/stage_times.py --model runs/stage2/model --data heldout --out times.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from magc_data.dataset import MagcDataset, TileSample
from magc_model.codec import MagcCodec
from magc_model.config import IN_THE_BOX, Device, RateMode
from magc_model.doctor import environment
from magc_model.host_memory import keep_memory
from magc_model.model import MagcModel
from magc_model.reconstruct import Reconstructor, Sampling, torch_device, usual_steps

if TYPE_CHECKING:
    from collections.abc import Callable

TILES = 8
REPEATS = 5


_ENDS = (("faithful", "image decoder"), ("drawn", "denoiser and image decoder"))
"""Of decoding: which stage makes the picture."""


class StageTime(NamedTuple):
    """Over tiles, each alone, several times."""

    stage: str
    least_ms: float
    """What a machine takes that does nothing else: shared ones vary twofold while they are looked at."""
    median_ms: float


def stage_times(model: MagcModel, data: Path, steps: int) -> list[StageTime]:
    """Times of each stage, for tiles from all over a dataset."""
    reconstructor = Reconstructor(model, device=torch_device(Device.AUTO), batch_size=1)
    samples = MagcDataset(data)
    # The first one warms up.
    numbers = [0, *np.linspace(0, len(samples) - 1, TILES).round().astype(int).tolist() * REPEATS]
    found = [_tile_times(reconstructor, samples[number], steps) for number in numbers][1:]
    for times in found:
        for words, drawn_by in _ENDS[: 1 + bool(steps)]:
            times[f"decoding, {words}"] = sum(times[stage] for stage in ("entropy decoding", "synthesis", drawn_by))
    stages = {}
    for stage in found[0]:
        ms = [times[stage] for times in found]
        stages[stage] = StageTime(stage, round(min(ms), 2), round(statistics.median(ms), 2))
    if steps:
        both, decoder = stages.pop(_ENDS[1][1]), stages["image decoder"]
        least, median = (round((a - b) / steps, 2) for a, b in zip(both[1:], decoder[1:], strict=True))
        stages["denoiser, one step"] = StageTime("denoiser, one step", least, median)
    return list(stages.values())


def _tile_times(reconstructor: Reconstructor, sample: TileSample, steps: int) -> dict[str, float]:
    config = reconstructor.model.config
    rate = 0.5 * (len(config.rate.lambdas) - 1) if config.rate.mode is RateMode.GAINED else None
    picture = torch.from_numpy(sample.image[None].copy())
    ids = torch.from_numpy(sample.semantic_map[None].copy()) if config.map.is_used else None
    times: dict[str, float] = {}

    def timed(stage: str, function: Callable[..., Any], *arguments: object) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times[stage] = 1e3 * (time.perf_counter() - started)
        return result

    analysed = timed("autoencoder and analysis", reconstructor.analyse, picture, ids)
    [coded] = timed("entropy coding", reconstructor.encode_symbols, analysed.symbols, ids, rate)
    symbols = timed("entropy decoding", reconstructor.symbols, coded.payload, sample.semantic_map.shape, ids)
    back = reconstructor.scaled_back(symbols[None], rate)
    guide = timed("synthesis", reconstructor.synthesise, back, ids)
    timed("image decoder", reconstructor.reconstruct, guide, ids, Sampling(steps=0))
    if steps:
        sampling = Sampling(sampler="ddim", steps=steps)
        timed("denoiser and image decoder", reconstructor.reconstruct, guide, ids, sampling)
    return times


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=IN_THE_BOX)
    parser.add_argument("--data", type=Path, required=True, help="dataset with tiles of 256 px")
    parser.add_argument(
        "--steps", type=int, default=4, help="denoising steps to take the mean of, where a model takes several"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    keep_memory()  # as the commands do
    torch.set_num_threads(options.threads)
    MagcCodec.from_pretrained(options.model)  # the first one imports libraries
    started = time.perf_counter()
    model = MagcCodec.from_pretrained(options.model).model
    loading_s = time.perf_counter() - started
    usual = usual_steps(model)
    steps = options.steps if usual > 1 else usual
    times = stage_times(model, options.data, steps)
    print(f"loaded in {loading_s:.2f} s")
    width = max(len(each.stage) for each in times)
    for each in times:
        print(f"{each.stage:<{width}}  {each.least_ms:9.2f} ms a tile at least, {each.median_ms:9.2f} in the median")
    if options.out:
        document = {
            "model": options.model,
            "threads": options.threads,
            "machine": environment(),
            "loading_s": loading_s,
            "milliseconds_a_tile": {each.stage: each._asdict() for each in times},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
