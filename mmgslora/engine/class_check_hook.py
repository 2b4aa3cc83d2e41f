"""Refuses a checkpoint of other classes, and says which classes the model never knew."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.evaluation.pretrained import pretrained_values
from mmgslora.preflight.checkpoint import class_difference

_KNOWN = 5.0  # percent; a class that was forgotten before has less


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compares the class names a checkpoint carries with those of the training data.

    The preflight does so for a file; this is for what MMEngine fetches from elsewhere. Before each
    task it warns of classes that the model could not recognise when the run began.

    Raises:
        ForgettingError: The names or their order differ.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        differs = class_difference(checkpoint, runner.train_loop.views.classes)
        if differs:
            raise ForgettingError(differs)

    def before_forget_task(self, runner) -> None:
        partition, before = ClassPartition.current(), pretrained_values('per_class/') or {}
        for name in partition.forget:
            if before.get(name, _KNOWN) < _KNOWN:
                runner.logger.warning(
                    f'The model hardly knows {name!r} before it is asked to forget it '
                    f'({before[name]:.1f} %): whatever follows shows little.'
                )
