"""From a finished task's folder back to its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mmgslora.lora import apply_adapter


def restore(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Make a plain model what a finished task made of it, whatever it was tuned with.

    The original and the folders of tasks 1 to t, applied in this order, give
    ``merged/task_t.pth``.

    Args:
        model: The plain model with the weights that the task began with.
        folder: As written by :meth:`~mmgslora.tuning.Tuner.save`.

    Returns:
        dict: The metadata of the folder.

    Raises:
        ForgettingError: The folder cannot be read or does not fit. The model is unchanged then.
    """
    return apply_adapter(model, folder)
