"""Plain models as ONNX files, compared with PyTorch where onnxruntime is installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgslora.atomic import replacing
from mmgslora.errors import ForgettingError
from mmgslora.models import LibraryClassifier

NEEDED = ('onnx', 'onnxscript')
CHECKER = 'onnxruntime'
# Float32 in another order of operations; boxes are pixels.
_TOLERANCE = dict(logits=1e-3, boxes=1e-1, scores=1e-4)


class _Classifier(nn.Module):
    """Images (n, 3, H, W) to logits (n, C)."""

    outputs = ('logits',)
    examples = 2  # torch.export takes a dimension of 1 for a constant
    exporter = dict(dynamo=True, verbose=False, external_data=False)

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = _network(model)

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        output = getattr(output, 'logits', output)
        return output[0] if isinstance(output, tuple) else output

    def expected(self, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """What the classifier itself gives."""
        return model(images)[:1]


class _Detector(nn.Module):
    """One image (1, 3, H, W) to boxes (k, 4) in its pixels, x1 y1 x2 y2, scores and labels (k,)."""

    outputs = ('boxes', 'scores', 'labels')
    examples = 1
    # From a trace: torch.export cannot read mmcv's attention.
    exporter = dict(dynamo=False)

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from mmdet.structures import DetDataSample

        sizes = {f'{what}_shape': self.size for what in ('batch_input', 'img', 'ori')}
        sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))
        found = self.model.predict(images, [sample], rescale=False)[0].pred_instances
        return found.bboxes, found.scores, found.labels

    def expected(self, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """What the detector itself predicts."""
        return self(images)


_READERS = dict(classifier=_Classifier, detector=_Detector)


def write_onnx(
    model: nn.Module, family: str, out: str | Path, size: Sequence[int] | None = None
) -> bool:
    """Write a plain model as ONNX, by torch's exporter.

    Args:
        model: The plain model.
        family: 'classifier' (any number of images at once) or 'detector' (one image).
        out: The file.
        size: (H, W) of the images in pixels, fixed in the file. Defaults to the classifier's own,
            where its network says it.

    Returns:
        Whether onnxruntime is installed; the file was then run on two images that the exporter
        has not seen and gave what PyTorch gives.

    Raises:
        ForgettingError: A package or a torch (2.6) that it needs is not installed, the size is not
            known, torch cannot export this model, or the file gives something else than the
            model. No file is left then.
    """
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ForgettingError(
                f"Writing ONNX needs the package {name!r}: pip install '.[onnx]'."
            )
    if torch.__version__ < (2, 6):
        raise ForgettingError(f'Writing ONNX needs torch 2.6; this is {torch.__version__}.')
    network = _network(model)
    own = getattr(getattr(network, 'backbone', network), 'image_size', None)
    if size is None and own is None:
        raise ForgettingError('An ONNX file of this model is for one size of image; give --size.')
    size = tuple(size) if size is not None else (own, own)
    reader = _READERS[family](model.eval(), size).eval()
    with replacing(out) as draft:
        _export(reader, size, draft)
        checked = importlib.util.find_spec(CHECKER) is not None
        if checked:
            _check(reader, model, draft, size)
    return checked


def _network(model: nn.Module) -> nn.Module:
    """A library's network without its wrapper, whose hook no exporter follows; else the model."""
    return model.plain if isinstance(model, LibraryClassifier) else model


def _export(reader: nn.Module, size: tuple[int, int], path: Path) -> None:
    images = _images(reader.examples, size, seed=0)
    options: dict[str, Any] = dict(reader.exporter)
    if reader.examples > 1:
        options['dynamic_shapes'] = [{0: torch.export.Dim('batch')}]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # sizes are constants of the file, as is meant
            torch.onnx.export(
                reader,
                (images,),
                str(path),
                input_names=['images'],
                output_names=list(reader.outputs),
                **options,
            )
    except Exception as error:  # the exporter fails in any way
        why = ' '.join(str(error).split())[:200] or type(error).__name__
        raise ForgettingError(f'torch cannot write this model as ONNX: {why}.') from error


@torch.no_grad()
def _check(reader: nn.Module, model: nn.Module, path: Path, size: tuple[int, int]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for seed in (1, 2):
        images = _images(1, size, seed)
        expected = reader.expected(model, images)
        given = session.run(None, {'images': images.numpy()})
        for name, theirs, ours in zip(reader.outputs, given, expected):
            worst = (torch.from_numpy(theirs).double() - ours.double()).abs().max().item()
            if name in _TOLERANCE and not worst <= _TOLERANCE[name]:
                raise ForgettingError(
                    f'The ONNX file gives other {name} than the model, by up to {worst:.2g}; '
                    f'allowed are {_TOLERANCE[name]:g}.'
                )


def _images(number: int, size: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(seed))
