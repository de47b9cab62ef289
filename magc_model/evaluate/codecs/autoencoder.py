"""A MAGC model's image autoencoder alone: `magc:MODEL,only=autoencoder`, the upper bound of whatever stands on it.

It compresses nothing: a file is the picture's size and its latent in half precision, 1 bit a pixel (table 2 of the
paper has it as "Pre-trained SD VAE").
"""

import struct

import numpy as np
import torch

from magc_data.version import __version__
from magc_model.config import IMAGE_STRIDE, IN_THE_BOX, LATENT_STRIDE
from magc_model.data import image_tensor
from magc_model.errors import EvaluationError
from magc_model.evaluate.codecs.protocol import ClassMap, Encoded, Picture
from magc_model.evaluate.codecs.spec import CodecSpec, RateScale, rates_of
from magc_model.model import MagcModel
from magc_model.scene.compress import filled_up

_HEADER = struct.Struct(">II")
"""Height and width."""
_CHANNELS = 4


class AutoencoderUnderTest:
    """The autoencoder of one model; its decoder reads the map where it was trained to."""

    def __init__(self, spec: CodecSpec, *, has_map: bool) -> None:
        self._model = MagcModel.from_pretrained(spec.argument or IN_THE_BOX, draws=False).eval()
        self.name = spec.text
        self.label = "MAGC's autoencoder alone"
        self.version = f"magc {__version__}, model {self._model.fingerprint()[:12]}"
        self.rates = rates_of(spec, RateScale("rate", (1.0,), 1, 1, whole=False))
        self._has_map = has_map
        self.uses_map = has_map and self._model.config.map.in_decoder

    @torch.no_grad()
    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:
        """The latent's most likely value; `semantic_map` and `rate` mean nothing here."""
        del semantic_map, rate
        latent = self._model.autoencoder.encode(image_tensor(filled_up(picture)[None]))
        values: bytes = torch.as_tensor(latent)[0].half().numpy().astype(">f2").tobytes()
        return Encoded(_HEADER.pack(*picture.shape[:2]) + values, len(values))

    @torch.no_grad()
    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:
        """The picture that the decoder makes of the latent."""
        if len(data) < _HEADER.size:
            raise EvaluationError(f"{len(data)} bytes are no latent: expected {_HEADER.size} and the latent's")
        size = _HEADER.unpack_from(data)
        height, width = (-(-side // IMAGE_STRIDE) * IMAGE_STRIDE for side in size)
        shape = _CHANNELS, height // LATENT_STRIDE, width // LATENT_STRIDE
        values = np.frombuffer(data, ">f2", offset=_HEADER.size)
        if values.size != np.prod(shape):
            raise EvaluationError(f"a latent of {values.size} values does not fit {size[1]}x{size[0]} pixels")
        planes = None
        if self._model.config.map.in_decoder:
            ids = None
            if self._has_map and semantic_map is not None:
                ids = torch.from_numpy(filled_up(semantic_map)[None])
            planes = self._model.planes(ids, (1, height, width))
        latent = torch.from_numpy(values.astype(np.float32).reshape(1, *shape))
        image = torch.as_tensor(self._model.autoencoder.decode(latent, planes))[0, :, : size[0], : size[1]]
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
