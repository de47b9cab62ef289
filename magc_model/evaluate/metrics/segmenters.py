"""Segmenters that the user has: torchvision's with their own weights, transformers' folders, TorchScript files.

Pictures go in as the models expect them: normalised as on ImageNet for torchvision, by the folder's own processor for
transformers, as RGB in 0..1 for TorchScript.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from magc_model.errors import EvaluationError, UsageError
from magc_model.evaluate.metrics.patches import Pictures
from magc_model.evaluate.metrics.semantic import ClassIdMaps
from magc_model.evaluate.metrics.weights import fill, filled_from, read_script, read_tensors

_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLASSES_FILE = "classes.txt"
Logits = Float[Tensor, "cuts classes rows columns"]


class TorchvisionSegmenter:
    """One of `torchvision.models.segmentation`, with weights from a file.

    Args:
        argument: NAME=FILE, as in `deeplabv3_resnet50=weights.pth`.

    Raises:
        UsageError: the argument is none, or torchvision has no such segmentation model.
        EvaluationError: the file is absent, damaged, or of another model.
    """

    def __init__(self, argument: str) -> None:
        import torchvision

        model, _, file = argument.partition("=")
        known = torchvision.models.list_models(module=torchvision.models.segmentation)
        if model not in known or not file:
            raise UsageError(f"segmenter 'torchvision:{argument}': expected NAME=FILE, NAME one of {', '.join(known)}")
        path = _there(Path(file))
        tensors = read_tensors(path)
        # The last layer of every one of them: its rows are the classes.
        last = [value for name, value in tensors.items() if name.startswith("classifier.") and name.endswith("weight")]
        if not last:
            raise EvaluationError(f"{path} has no classifier: expected weights of torchvision's {model}")
        count = len(last[-1])
        auxiliary = any(name.startswith("aux_classifier.") for name in tensors)
        network = torchvision.models.get_model(
            model, weights=None, weights_backbone=None, num_classes=count, aux_loss=auxiliary or None
        )
        fill(network, tensors, path)
        self.name = f"{model}-{path.stem}"
        self.classes = _voc_classes(count)
        self._network = network

    def predict(self, pictures: Pictures) -> ClassIdMaps:
        """The class of every pixel."""
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION))
        with torch.no_grad():
            return _strongest(self._network((_planes(pictures) - mean) / deviation)["out"], pictures)


class TransformersSegmenter:
    """A semantic segmentation model in a local folder, as `save_pretrained` leaves it; no code of the folder is run.

    Args:
        argument: the folder, with config, weights and image processor.

    Raises:
        EvaluationError: there is no such folder, or it cannot be loaded.
    """

    def __init__(self, argument: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        folder = Path(argument)
        if not (folder / "config.json").is_file():
            raise EvaluationError(f"{folder} has no config.json: expected a model folder of transformers")
        try:
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._network, loading = AutoModelForSemanticSegmentation.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            detail = " ".join(str(error).split())[:200]
            raise EvaluationError(
                f"{folder} is no semantic segmentation model that transformers can load ({detail}): expected what "
                "save_pretrained writes, processor included"
            ) from error
        if loading["missing_keys"]:
            # It would draw these at random, and only warn.
            raise EvaluationError(
                f"{folder} lacks {len(loading['missing_keys'])} of its model's weights, {min(loading['missing_keys'])} "
                "among them: expected a model that was trained for semantic segmentation"
            )
        self._network.eval()
        labels = self._network.config.id2label
        self.name = folder.resolve().name
        self.classes = tuple(str(labels[number]) for number in range(len(labels)))

    def predict(self, pictures: Pictures) -> ClassIdMaps:
        """The class of every pixel."""
        prepared = self._processor(images=list(pictures), return_tensors="pt")
        with torch.no_grad():
            return _strongest(self._network(**prepared).logits, pictures)


class TorchscriptSegmenter:
    """A TorchScript file: RGB in 0..1, [cuts, 3, height, width], to logits [cuts, classes, rows, columns].

    Classes are named by a file `classes.txt` inside of the archive, one a line (`torch.jit.save(model, path,
    _extra_files={"classes.txt": ...})`); without it they are called class 0, class 1 and so on.

    Args:
        argument: the file.

    Raises:
        EvaluationError: the file is absent or damaged, or answers with something else.
    """

    def __init__(self, argument: str) -> None:
        path = _there(Path(argument))
        extra: dict[str, Any] = {_CLASSES_FILE: ""}
        network = read_script(path, extra)
        self._network, self._path = network.eval(), path
        self.name = path.stem
        with torch.no_grad():
            count = self._logits(torch.zeros(1, 3, 256, 256)).shape[1]
        content = extra[_CLASSES_FILE]
        lines = (content.decode() if isinstance(content, bytes) else content).split("\n")
        names = tuple(line.strip() for line in lines if line.strip())
        if names and len(names) != count:
            raise EvaluationError(f"{path} names {len(names)} classes and has {count}: name each of them")
        self.classes = names or tuple(f"class {number}" for number in range(count))

    def predict(self, pictures: Pictures) -> ClassIdMaps:
        """The class of every pixel."""
        with torch.no_grad():
            return _strongest(self._logits(_planes(pictures)), pictures)

    def _logits(self, planes: Float[Tensor, "cuts 3 height width"]) -> Logits:
        answers: list[Any] = []
        filled_from(self._path, lambda: answers.append(self._network(planes)))
        logits = answers[0]["out"] if isinstance(answers[0], dict) and "out" in answers[0] else answers[0]
        if not isinstance(logits, Tensor) or logits.ndim != 4 or len(logits) != len(planes):
            raise EvaluationError(
                f"{self._path} does not answer with logits: expected [cuts, classes, rows, columns] for RGB in 0..1, "
                "[cuts, 3, height, width]"
            )
        return logits.float()


def _there(path: Path) -> Path:
    if not path.is_file():
        raise EvaluationError(f"{path} is not there: expected the weights of a segmenter")
    return path


def _planes(pictures: Pictures) -> Float[Tensor, "cuts 3 height width"]:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def _strongest(logits: Logits, pictures: Pictures) -> ClassIdMaps:
    """The class of every pixel, of logits on any grid."""
    full = nn.functional.interpolate(logits, size=pictures.shape[1:3], mode="bilinear", align_corners=False)
    return np.asarray(full.argmax(dim=1).numpy())


def _voc_classes(count: int) -> tuple[str, ...]:
    """The names of torchvision's own weights where there are as many classes, else numbers."""
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    names = tuple(DeepLabV3_ResNet50_Weights.DEFAULT.meta["categories"])
    return names if count == len(names) else tuple(f"class {number}" for number in range(count))
