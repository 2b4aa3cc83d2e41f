"""Plain models as ONNX files, compared with PyTorch where onnxruntime is installed."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgslora.atomic import replacing
from mmgslora.errors import ForgettingError

NEEDED = 'onnx'
CHECKER = 'onnxruntime'
# Float32 in another order of operations; boxes are pixels.
_TOLERANCE = dict(logits=1e-3, boxes=1e-1, scores=1e-4)


class _Classifier(nn.Module):
    """Images (n, 3, H, W) to logits (n, C)."""

    outputs = ('logits',)

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.head(self.model.backbone(images))


class _Detector(nn.Module):
    """One image (1, 3, H, W) to boxes (k, 4) in its pixels, x1 y1 x2 y2, scores and labels (k,)."""

    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from mmdet.structures import DetDataSample

        sizes = {f'{what}_shape': self.size for what in ('batch_input', 'img', 'ori')}
        sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))
        found = self.model.predict(images, [sample], rescale=False)[0].pred_instances
        return found.bboxes, found.scores, found.labels


_READERS = dict(classifier=_Classifier, detector=_Detector)


def write_onnx(
    model: nn.Module, family: str, out: str | Path, size: Sequence[int] | None = None
) -> bool:
    """Write a plain model as ONNX, by torch's exporter from a trace.

    Args:
        model: The plain model.
        family: 'classifier' (any number of images at once) or 'detector' (one image).
        out: The file.
        size: (H, W) of the images in pixels, fixed in the file. Defaults to the classifier's own.

    Returns:
        Whether onnxruntime is installed; the file was then run on two images that the exporter
        has not seen and gave what PyTorch gives.

    Raises:
        ForgettingError: onnx is not installed, the size is not known, torch cannot export this
            model, or the file gives something else than the model. No file is left then.
    """
    if importlib.util.find_spec(NEEDED) is None:
        raise ForgettingError(f"Writing ONNX needs the package {NEEDED!r}: pip install '.[onnx]'.")
    own = getattr(getattr(model, 'backbone', None), 'image_size', None)
    if size is None and own is None:
        raise ForgettingError('An ONNX file of this model is for one size of image; give --size.')
    size = tuple(size) if size is not None else (own, own)
    reader = _READERS[family](model, size).eval()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with replacing(out) as draft:
        _export(reader, images, draft)
        checked = importlib.util.find_spec(CHECKER) is not None
        if checked:
            _check(reader, draft, size)
    return checked


def _export(reader: nn.Module, images: Tensor, path: Path) -> None:
    options: dict[str, Any] = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        options['dynamo'] = False  # torch.export cannot read mmcv's attention
    if len(reader.outputs) == 1:
        options['dynamic_axes'] = {name: {0: 'images'} for name in ('images', *reader.outputs)}
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
def _check(reader: nn.Module, path: Path, size: tuple[int, int]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for seed in (1, 2):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
        expected = reader(images)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        given = session.run(None, {'images': images.numpy()})
        for name, theirs, ours in zip(reader.outputs, given, expected):
            worst = (torch.from_numpy(theirs).double() - ours.double()).abs().max().item()
            if name in _TOLERANCE and not worst <= _TOLERANCE[name]:
                raise ForgettingError(
                    f'The ONNX file gives other {name} than the model, by up to {worst:.2g}; '
                    f'allowed are {_TOLERANCE[name]:g}.'
                )
