"""What today's PyTorch needs from yesterday's OpenMMLab.

``import mmgslora`` puts three things in place: PyTorch code for the compiled operators that
detection transformers need, where mmcv has none (a compiled mmcv is not touched), leave for torch's
safe loader to read MMEngine's own checkpoints (that it is the one used: :mod:`mmgslora.loading`),
and a memory for configs that were formatted already. A script that does not import mmgslora early
enough gets all of it from
``python -m mmgslora.compat SCRIPT ARGS...``.

torch and torchvision are imported where they are used, so that ``mmgslora.env`` can say what is
wrong with them.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import pickle
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EXTENSION = 'mmcv._ext'
USAGE = 'usage: python -m mmgslora.compat SCRIPT ARGS...'


def install() -> None:
    """Puts in place what this machine lacks; a second call changes nothing."""
    if importlib.util.find_spec('mmcv') is not None and not has_compiled_mmcv():
        sys.modules.setdefault(EXTENSION, _StandIn())
    if all(importlib.util.find_spec(name) is not None for name in ('torch', 'mmengine')):
        _allow_mmengine_checkpoints()
        _format_configs_once()


def has_compiled_mmcv() -> bool:
    """Whether mmcv is installed with its compiled operators."""
    if EXTENSION in sys.modules:
        return not isinstance(sys.modules[EXTENSION], _StandIn)
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv is None:
        return False
    # Not importlib.util.find_spec(EXTENSION): that would import mmcv, and OpenCV with it.
    folders = mmcv.submodule_search_locations
    return importlib.machinery.PathFinder.find_spec(EXTENSION, folders) is not None


class _StandIn(types.ModuleType):
    """The module ``mmcv._ext`` where it was not compiled.

    An operator has the compiled one's signature and, like it, fills the tensors it is handed. The
    arithmetic is at least float32. Operators that are not here say so when they are called, so that
    ``mmcv.ops`` and ``mmdet.models`` can be imported.
    """

    def __init__(self) -> None:
        super().__init__(EXTENSION, 'Stands in for the compiled operators of mmcv.')
        # Without a loader MMEngine's mmcv_full_available() keeps saying no, as it should.
        self.__spec__ = importlib.machinery.ModuleSpec(EXTENSION, loader=None)

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('_'):  # inspect, pickle and doctest ask for these and believe the answer
            raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')

        def missing(*args: Any, **kwargs: Any) -> None:
            raise _not_compiled(f'The operator {name!r}')

        return missing

    @staticmethod
    def get_compiler_version() -> str:
        return 'n/a'

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return 'n/a'

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        from torchvision.ops import nms

        boxes, scores = _same_float(boxes, scores)
        if offset:  # the last pixel belongs to the box: it is one wider and higher
            boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
        return nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **how: Any
    ) -> None:
        align = _roi_align(rois, **how)
        output.copy_(align(*_same_float(input)))

    @staticmethod
    def roi_align_backward(
        grad_output: Tensor,
        rois: Tensor,
        argmax_y: Tensor,
        argmax_x: Tensor,
        grad_input: Tensor,
        **how: Any,
    ) -> None:
        # RoIAlign is linear in its input, so any input has the same gradient.
        align = _roi_align(rois, **how)
        _fill_gradients([grad_input], align, [grad_input], grad_output)

    @staticmethod
    def sigmoid_focal_loss_forward(
        input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
    ) -> None:
        loss = _focal_loss(target, weight, gamma, alpha)
        output.copy_(loss(*_same_float(input)))

    @staticmethod
    def sigmoid_focal_loss_backward(
        input: Tensor,
        target: Tensor,
        weight: Tensor,
        grad_input: Tensor,
        gamma: float,
        alpha: float,
    ) -> None:
        loss = _focal_loss(target, weight, gamma, alpha)
        _fill_gradients([grad_input], loss, [input], input.new_ones(input.shape))

    @staticmethod
    def ms_deform_attn_forward(
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        locations: Tensor,
        weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        attention = _deformable_attention(value, shapes)
        return attention(*_same_float(value, locations, weights)).to(value.dtype)

    @staticmethod
    def ms_deform_attn_backward(
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        locations: Tensor,
        weights: Tensor,
        grad_output: Tensor,
        grad_value: Tensor,
        grad_locations: Tensor,
        grad_weights: Tensor,
        im2col_step: int,
    ) -> None:
        # Computes the forward pass again, and so keeps none of its large intermediates till here.
        attention = _deformable_attention(value, shapes)
        gradients = [grad_value, grad_locations, grad_weights]
        _fill_gradients(gradients, attention, [value, locations, weights], grad_output)


def _roi_align(
    rois: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Callable[[Tensor], Tensor]:
    from torchvision.ops import roi_align

    if pool_mode == 0:
        raise _not_compiled("RoIAlign with pool_mode='max'")
    size = (aligned_height, aligned_width)

    def align(input: Tensor) -> Tensor:
        return roi_align(input, rois.to(input), size, spatial_scale, sampling_ratio, aligned)

    return align


def _focal_loss(
    target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Callable[[Tensor], Tensor]:
    import torch
    from torchvision.ops import sigmoid_focal_loss

    def loss(input: Tensor) -> Tensor:
        # The background is the class after the last one, so its row is all zeros.
        classes = torch.arange(input.shape[1], device=input.device)
        one_hot = (target[:, None] == classes).to(input)
        values = sigmoid_focal_loss(input, one_hot, alpha, gamma)
        return values * weight[target][:, None] if weight.numel() else values

    return loss


def _deformable_attention(value: Tensor, shapes: Tensor) -> Callable[..., Tensor]:
    import torch
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    if value.dtype == torch.bfloat16:
        # By now mmcv has rounded the sampling locations, by up to 1/512 of the image.
        raise NotImplementedError(
            'The operator of mmcv for deformable attention has no bfloat16: use float16 or '
            'float32, or import mmgslora.register, which has it run in float32.'
        )
    sizes = shapes.tolist()  # asks the GPU once, not for every number

    def attention(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)

    return attention


def _same_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one float type that holds them all, float32 at least."""
    import torch

    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _fill_gradients(
    gradients: list[Tensor],
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    grad_output: Tensor,
) -> None:
    """Copies the gradients of ``function(*inputs)`` into the tensors that await them."""
    import torch

    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in _same_float(*inputs)]
        output = function(*inputs)
    values = torch.autograd.grad(output, inputs, grad_output.to(output))
    for gradient, value in zip(gradients, values):
        gradient.copy_(value)


def _not_compiled(what: str) -> NotImplementedError:
    return NotImplementedError(
        f'{what} needs compiled mmcv operators and this mmcv has none: install a compiled mmcv '
        'that fits your torch, for example with `mim install mmcv`.'
    )


def _allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load`` with ``weights_only`` read the log history in MMEngine's checkpoints."""
    import torch

    if torch.__version__ < (2, 6):  # loads them as it always did
        return
    import numpy as np
    from mmengine.logging import HistoryBuffer

    reconstruct, _, _ = np.zeros(1).__reduce__()
    scalar, _ = np.float64().__reduce__()
    # The second of a pair is the name in the file: numpy 1 and 2 write different ones for the same
    # function, and a checkpoint may be older than the numpy that reads it.
    torch.serialization.add_safe_globals(
        [HistoryBuffer, np.ndarray, np.dtype, type(np.dtype('f8')), type(np.dtype('i8'))]
        + [(reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')]
        + [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
        + [(history_statistic, 'builtins.getattr')]
    )


def history_statistic(owner: type, name: str) -> Callable:
    """``getattr`` in a checkpoint: a HistoryBuffer writes down its own four methods with it.

    The real ``getattr`` would let a file reach any function that torch or numpy can, and have
    HistoryBuffer call it.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(owner, name)


def _format_configs_once() -> None:
    """Lets MMEngine keep the text of a config: yapf takes half a second, each checkpoint asks."""
    from mmengine.config import config

    plain = config.FormatCode
    if isinstance(plain, _Remembered):
        return
    config.FormatCode = _Remembered(plain)


class _Remembered:
    """A function of yapf's that is asked for the same few texts again and again."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self._plain = plain
        self._call = functools.lru_cache(maxsize=8)(self._unpacked)

    def _unpacked(self, text: str, style: tuple, options: tuple) -> Any:
        return self._plain(text, style_config=dict(style), **dict(options))

    def __call__(self, text: str, *, style_config: dict, **options) -> Any:
        return self._call(text, tuple(style_config.items()), tuple(options.items()))


def main(arguments: list[str] | None = None) -> int:
    """Runs a script as ``python SCRIPT ARGS...`` would, with everything above in place.

    Args:
        arguments: The script and its arguments. Defaults to those of the command line.

    Returns:
        The exit code: 2 if there is no such script.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(USAGE, file=sys.stderr)
        return 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f'mmgslora.compat: there is no script {arguments[0]!r}.', file=sys.stderr)
        return 2
    sys.argv = list(arguments)
    if all(importlib.util.find_spec(name) is not None for name in ('torch', 'mmengine')):
        importlib.import_module('mmgslora.loading')  # checkpoints are read safely on every torch
    if not getattr(sys.flags, 'safe_path', False):  # then python leaves sys.path alone as well
        sys.path[0] = str(script.resolve().parent)
    runpy.run_path(arguments[0], run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())  # -m has imported the package before this file, so all is in place
