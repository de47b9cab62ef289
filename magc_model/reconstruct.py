"""A model in use: images to payloads, payloads to images; in batches, on any device, in any precision.

    images ─► encode ─► LatentCodec ─► payloads                                              sender
    payloads ─► LatentCodec ─► guide ─► sampler over the denoiser ─► decode ─► images        receiver
                               guide + one-step generator ─► realistic decoder ─┐
                               guide ─► decode ─────────────────────────────────┴► images    or so

What a picture becomes depends on its payload, its map and its window of the noise field alone, not on the batch that it
is computed in (beyond the last bits of the float arithmetic).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from magc_model.config import IMAGE_STRIDE, LATENT_STRIDE, SYMBOL_STRIDE, Device, InferencePrecision, RateMode
from magc_model.diffusion.noise import NoiseWindow, noise_batch
from magc_model.diffusion.samplers import SAMPLERS, start_latent
from magc_model.diffusion.schedule import noise_schedule
from magc_model.entropy.latent_codec import CompressedLatent, LatentCodec
from magc_model.errors import DataError, ModelError, UsageError
from magc_model.model import MagcModel
from magc_model.nets.autoencoder import ImageNetwork
from magc_model.shapes import ClassIds, Image, Latent, MapPlanes, Rates, Symbols

Pictures = UInt8[Tensor, "batch height width 3"]
"""RGB as files have it."""

_Network = TypeVar("_Network", bound=ImageNetwork)

_DTYPES = {
    InferencePrecision.FP32: torch.float32,
    InferencePrecision.BF16: torch.bfloat16,
    InferencePrecision.FP16: torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the denoiser is run."""

    sampler: str = "ddpm"
    """ddpm (the paper's), ddim, dpm-solver++ or unipc; a one-step generator has none, whatever this says."""
    steps: int = 50
    """Calls of the denoiser; 0 decodes the guide itself: the most faithful, and the smoothest. At most 1 for a one-step
    generator."""
    start_t: int | None = None
    """Start from the guide with the noise of this timestep instead of from pure noise; for models trained for it."""
    fidelity: float = 0.0
    """0: what the denoiser drew; 1: the guide, as with 0 steps; between, the mean of both, so weighted: of their
    latents, or of their pictures where a one-step generator drew."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.sampler not in SAMPLERS:
            raise UsageError(f"sampler '{self.sampler}' is unknown: expected one of {', '.join(SAMPLERS)}")
        if self.steps < 0:
            raise UsageError(f"{self.steps} steps: expected 0 (no diffusion) or more")
        if not 0 <= self.fidelity <= 1:
            raise UsageError(f"a fidelity of {self.fidelity:g}: expected 0 (most realistic) to 1 (most faithful)")


def usual_sampling(model: MagcModel) -> Sampling:
    """What is done unasked: the paper's diffusion, and what the symbols say where a model has none.

    A one-step generator draws when it is asked to: what it makes up is no mean of what may have been there.
    """
    if not model.has_denoiser or model.config.denoiser.is_one_step:
        return Sampling(steps=0)
    return Sampling()


def usual_steps(model: MagcModel) -> int:
    """Steps where a drawing is asked for, and not in how many."""
    if not model.has_denoiser:
        return 0
    return 1 if model.config.denoiser.is_one_step else Sampling().steps


def check_sampling(model: MagcModel, sampling: Sampling) -> None:
    """Whether a model can draw so.

    Raises:
        ModelError: it has no denoiser and there are steps, or the denoiser was not read and is to draw.
        UsageError: it has a one-step generator, and there are more or it is to start from the guide.
    """
    if not sampling.steps:
        return
    if not model.has_denoiser:
        raise ModelError(
            "the model has no denoiser yet: train it with `magc-train stage2`, or reconstruct with 0 steps"
        )
    if model.config.denoiser.is_one_step and (sampling.steps > 1 or sampling.start_t is not None):
        found = f"{sampling.steps} steps" if sampling.steps > 1 else "a timestep to start from"
        raise UsageError(
            f"{found}: this model draws in one step from pure noise, so use 1 step (or 0 for none), and "
            "--fidelity for what lies between"
        )
    if model.denoiser is None and not (model.config.denoiser.is_one_step and sampling.fidelity == 1):
        raise ModelError(
            f"{sampling.steps} steps of a model that was read without its {' and '.join(model.left_out)}: read it with "
            "draws=True, or use 0 steps"
        )


class WindowAnalysis(NamedTuple):
    """What the sender knows of windows of a scene."""

    symbols: Symbols
    """Unrounded, before they are scaled to a rate."""
    latent: Latent


def torch_device(device: Device) -> torch.device:
    """The device that a name stands for; `auto` is CUDA where there is a GPU.

    Raises:
        UsageError: there is no such device here.
    """
    if device is Device.CUDA and not torch.cuda.is_available():
        raise UsageError("--device is cuda, but this PyTorch finds no CUDA device: use --device cpu")
    return torch.device("cuda" if device is not Device.CPU and torch.cuda.is_available() else "cpu")


class Reconstructor:
    """Compresses and reconstructs with a model.

    Args:
        model: from stage 1 on; diffusion needs stage 2. It is moved to the device and put in evaluation mode; its
            weights keep their values and their dtype.
        device: where to compute.
        precision: of the autoencoder and the denoiser, of which there are copies then. The LCM stays in fp32, and its
            entropy networks are exact.
        compile: compile a copy of the UNet (pays on a GPU, for many pictures of one size); the last batch is filled up
            to the size of those before it, so that it needs no compilation of its own.
        batch_size: pictures at a time.

    Raises:
        ModelError: the model has no latent compression module or no tables.
        UsageError: fp16 on a CPU, or no pictures at a time.
    """

    def __init__(
        self,
        model: MagcModel,
        *,
        device: torch.device,
        precision: InferencePrecision = InferencePrecision.FP32,
        compile: bool = False,  # noqa: A002  (as torch and the command line call it)
        batch_size: int = 8,
    ) -> None:
        if model.latent_compression is None or model.tables is None:
            raise ModelError("the model cannot compress yet: train it with `magc-train stage1` first")
        if precision is InferencePrecision.FP16 and device.type == "cpu":
            raise UsageError("fp16 is for GPUs: use bf16 or fp32 on a CPU")
        if batch_size < 1:
            raise UsageError(f"a batch of {batch_size} pictures: expected 1 or more")
        self.model = model.to(device).eval()
        self._lcm = model.latent_compression
        self._codec = LatentCodec(self._lcm, model.tables)
        self._device, self._dtype, self._batch_size = device, _DTYPES[precision], batch_size
        # Copies where the precision changes: the weights that identify the model stay as they are.
        in_place = self._dtype is torch.float32 and not compile
        self._denoiser = model.denoiser if in_place else copy.deepcopy(model.denoiser)
        self._autoencoder = self._for_use(model.autoencoder)
        drawn_by = model.realistic_decoder
        self._realistic_decoder = self._autoencoder if drawn_by is None else self._for_use(drawn_by)
        if self._denoiser is not None:
            self._denoiser.to(self._dtype)
            if compile:
                self._denoiser.unet.compile()
        self._fills_up = compile
        self._is_one_step = model.config.denoiser.is_one_step
        self._schedule = noise_schedule(model.config.diffusion)

    def _for_use(self, network: _Network) -> _Network:
        """A network of convolutions, which gain by another order in memory on CPU and GPU; the UNet does not."""
        network = network if self._dtype is torch.float32 else copy.deepcopy(network)
        return network.to(self._dtype).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def compress(
        self, pictures: Pictures, class_ids: ClassIds | None, rate: float | None = None
    ) -> list[CompressedLatent]:
        """Compress pictures whose sides are multiples of 64.

        Args:
            pictures: any number of one size.
            class_ids: their maps, or none for ground without one.
            rate: position on the rate axis, for gained models and only for them: 0 to number of lambdas - 1.

        Raises:
            UsageError: a side is no multiple of 64, `rate` does not fit the model, or there is no map and the model
                has never been trained without one.
            DataError: the map does not fit the pictures or the model.
        """
        self._check_size(*pictures.shape[1:3])
        _check_maps(class_ids, len(pictures))
        result = []
        for some in _batches(len(pictures), self._batch_size):
            planes = self._planes(_part(class_ids, some), (len(pictures[some]), *pictures.shape[1:3]))
            latent = self._encode(self._images(pictures[some]))
            result += self._codec.compress(latent, planes, self._rates(rate, len(latent)))
        return result

    @torch.no_grad()
    def guides(
        self, payloads: Sequence[bytes], size: tuple[int, int], class_ids: ClassIds | None, rate: float | None = None
    ) -> Latent:
        """What the payloads of pictures of one size (height, width in pixels) hold: the denoiser's guides.

        Raises:
            PayloadError: a payload is damaged or another model's.
            UsageError, DataError: as for `compress`; or there are no payloads.
        """
        self._check_size(*size)
        _check_maps(class_ids, len(payloads))
        if not payloads:
            raise UsageError("there are no payloads: expected one or more")
        symbols = (size[0] // SYMBOL_STRIDE, size[1] // SYMBOL_STRIDE)
        guides = []
        for some in _batches(len(payloads), self._batch_size):
            chosen = payloads[some]
            planes = self._planes(_part(class_ids, some), (len(chosen), *size))
            guides.append(self._codec.decompress(chosen, symbols, planes, self._rates(rate, len(chosen))))
        return torch.cat(guides)

    @torch.no_grad()
    def symbols(
        self, payload: bytes, size: tuple[int, int], class_ids: ClassIds | None
    ) -> Float64[Tensor, "symbol_channels symbol_height symbol_width"]:
        """What a payload says, before any float network: the same on every machine, to the last bit.

        Raises:
            PayloadError: the payload is damaged or another model's.
            UsageError, DataError: as for `compress`.
        """
        self._check_size(*size)
        planes = self._planes(class_ids, (1, *size))
        return self._codec.decode_symbols([payload], (size[0] // SYMBOL_STRIDE, size[1] // SYMBOL_STRIDE), planes)[0]

    # --- in pieces, for scenes ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def analyse(self, pictures: Pictures, class_ids: ClassIds | None) -> WindowAnalysis:
        """Windows of a scene, on the device.

        Raises:
            UsageError, DataError: as for `compress`.
        """
        latent, planes = self._encode(self._images(pictures)), self._planes(class_ids, pictures.shape[:3])
        return WindowAnalysis(self._codec.analyse(latent, planes), latent)

    @torch.no_grad()
    def encode_symbols(
        self, symbols: Symbols, class_ids: ClassIds | None, rate: float | None = None
    ) -> list[CompressedLatent]:
        """Payloads of what `analyse` gave, cut into chunks.

        Raises:
            UsageError, DataError: as for `compress`.
        """
        count, _, height, width = symbols.shape
        planes = self._planes(class_ids, (count, height * SYMBOL_STRIDE, width * SYMBOL_STRIDE))
        return self._codec.encode_analysed(symbols.to(self._device), planes, self._rates(rate, count))

    @torch.no_grad()
    def scaled_back(
        self, symbols: Float64[Tensor, "batch symbol_channels symbol_height symbol_width"], rate: float | None = None
    ) -> Symbols:
        """Decoded symbols as those of every rate are, so that chunks of several rates can lie side by side."""
        return self._codec.scaled_back(symbols.to(self._device).float(), self._rates(rate, len(symbols)))

    @torch.no_grad()
    def synthesise(self, symbols: Symbols, class_ids: ClassIds | None) -> Latent:
        """The denoiser's guide, from symbols that were scaled back."""
        count, _, height, width = symbols.shape
        planes = self._planes(class_ids, (count, height * SYMBOL_STRIDE, width * SYMBOL_STRIDE))
        return self._codec.synthesise(symbols.to(self._device), planes)

    @torch.no_grad()
    def reconstruct(
        self,
        guides: Latent,
        class_ids: ClassIds | None,
        sampling: Sampling,
        windows: Sequence[NoiseWindow] | None = None,
    ) -> Pictures:
        """Pictures of guides.

        Args:
            guides: from `guides`.
            class_ids: the maps, or none.
            sampling: sampler, steps, start.
            windows: each picture's seed and place on the noise field; seed 0, at its origin, if not given.

        Raises:
            ModelError: the model has no denoiser, or was read without it, and there are steps.
            UsageError: there are no guides or not as many windows, the sampler's steps and start do not fit the noise
                schedule or a one-step generator, or there is no map and the model has never been trained without one.
            DataError: the map does not fit the guides or the model.
        """
        check_sampling(self.model, sampling)
        if windows is None:
            windows = [NoiseWindow(0)] * len(guides)
        if not len(guides):
            raise UsageError("there are no guides: expected one or more")
        if len(windows) != len(guides):
            raise UsageError(f"there are {len(windows)} windows for {len(guides)} guides: expected one a guide")
        _check_maps(class_ids, len(guides))
        full = min(self._batch_size, len(guides))
        height, width = (LATENT_STRIDE * side for side in guides.shape[2:])
        pictures = []
        for some in _batches(len(guides), self._batch_size):
            latent = guides[some].to(self._device)
            planes = self._planes(_part(class_ids, some), (len(latent), height, width))
            if not sampling.steps or (self._is_one_step and sampling.fidelity == 1):
                pictures.append(_as_bytes(self._decode(self._autoencoder, latent, planes)))
                continue
            missing = full - len(latent) if self._fills_up else 0
            drawn = (self._drawn_at_once if self._is_one_step else self._sampled)(
                _filled_up(latent, missing),
                None if planes is None else _filled_up(planes, missing),
                sampling,
                [*windows[some], *[windows[-1]] * missing],
            )[: len(latent)]
            mean_of = self._mean_of_pictures if self._is_one_step else self._mean_of_latents
            pictures.append(_as_bytes(mean_of(drawn, latent, planes, sampling.fidelity)))
        return torch.cat(pictures)

    def _mean_of_latents(self, drawn: Latent, guide: Latent, planes: MapPlanes | None, fidelity: float) -> Image:
        return self._decode(self._autoencoder, torch.lerp(drawn, guide, fidelity), planes)

    def _mean_of_pictures(self, drawn: Latent, guide: Latent, planes: MapPlanes | None, fidelity: float) -> Image:
        realistic = self._decode(self._realistic_decoder, drawn, planes)
        if not fidelity:
            return realistic
        faithful = self._decode(self._autoencoder, guide, planes)
        return torch.lerp(realistic.clamp(-1, 1), faithful.clamp(-1, 1), fidelity)

    def _drawn_at_once(
        self, guide: Latent, planes: MapPlanes | None, _: Sampling, windows: Sequence[NoiseWindow]
    ) -> Latent:
        """The guide and what a one-step generator adds to it, at the schedule's noisiest timestep."""
        denoiser = self._denoiser
        if denoiser is None:
            raise AssertionError("checked by the caller")
        noise = noise_batch(windows, 0, guide.shape[2], guide.shape[3], device=guide.device)
        last = self.model.config.diffusion.train_timesteps - 1
        timesteps = torch.full((len(guide),), last, device=guide.device)
        return guide + torch.as_tensor(denoiser(noise, timesteps, guide, denoiser.encode_map(planes)))

    def _sampled(
        self, guide: Latent, planes: MapPlanes | None, sampling: Sampling, windows: Sequence[NoiseWindow]
    ) -> Latent:
        denoiser = self._denoiser
        if denoiser is None:
            raise AssertionError("checked by the caller")
        features = denoiser.encode_map(planes)

        def denoise(latent: Latent, timestep: int) -> Latent:
            timesteps = torch.full((len(latent),), timestep, device=latent.device)
            return torch.as_tensor(denoiser(latent, timesteps, guide, features))

        def noise(draw: int) -> Latent:
            return noise_batch(windows, draw, guide.shape[2], guide.shape[3], device=guide.device)

        start = start_latent(guide, self._schedule, sampling.start_t, noise)
        sampler = SAMPLERS[sampling.sampler]
        return sampler(denoise, start, self._schedule, steps=sampling.steps, start_t=sampling.start_t, noise=noise)

    def _decode(self, decoder: ImageNetwork, latent: Latent, planes: MapPlanes | None) -> Image:
        seen = planes.to(self._dtype) if planes is not None and self.model.config.map.in_decoder else None
        latent = latent.to(self._dtype).contiguous(memory_format=torch.channels_last)
        return torch.as_tensor(decoder.decode(latent, seen)).float()

    def _encode(self, images: Image) -> Latent:
        images = images.to(self._dtype).contiguous(memory_format=torch.channels_last)
        return torch.as_tensor(self._autoencoder.encode(images)).float()

    def _images(self, pictures: Pictures) -> Image:
        return pictures.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _planes(self, class_ids: ClassIds | None, shape: tuple[int, ...]) -> MapPlanes | None:
        batch, height, width = shape
        return self.model.planes(None if class_ids is None else class_ids.to(self._device), (batch, height, width))

    def _rates(self, rate: float | None, count: int) -> Rates | None:
        config = self.model.config.rate
        if (rate is None) is (config.mode is RateMode.GAINED):
            wanted = "a position on the rate axis" if rate is None else "no position on the rate axis: it has one rate"
            raise UsageError(f"a {config.mode} model needs {wanted}")
        if rate is None:
            return None
        highest = len(config.lambdas) - 1
        if not 0 <= rate <= highest:
            raise UsageError(f"{rate} is no position on the rate axis: expected 0 to {highest}")
        return torch.full((count,), float(rate), device=self._device)

    @staticmethod
    def _check_size(height: int, width: int) -> None:
        if height % IMAGE_STRIDE or width % IMAGE_STRIDE or not height or not width:
            raise UsageError(
                f"a picture has {width}x{height} pixels: expected sides that are multiples of {IMAGE_STRIDE}, so crop "
                "or pad it"
            )


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _part(class_ids: ClassIds | None, some: slice) -> UInt8[Tensor, "part height width"] | None:
    return None if class_ids is None else class_ids[some]


def _check_maps(class_ids: ClassIds | None, count: int) -> None:
    if class_ids is not None and len(class_ids) != count:
        raise DataError(f"there are {len(class_ids)} maps for {count} pictures: expected one a picture")


def _filled_up(tensor: Tensor, missing: int) -> Tensor:
    """With the last one as often again as is missing."""
    return torch.cat((tensor, tensor[-1:].expand(missing, -1, -1, -1))) if missing else tensor


def _as_bytes(images: Image) -> Pictures:
    scaled = (images.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
