"""Refuses a checkpoint that was trained on other classes."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgslora.errors import ForgettingError
from mmgslora.families.checkpoint import class_names


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compares the class names a checkpoint carries with those of the training data.

    Equal shapes do not make equal classes: with another order of names the wrong class would be
    forgotten. Checkpoints without class names pass.

    Raises:
        ForgettingError: The names or their order differ.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        known = class_names(checkpoint)
        wanted = runner.train_loop.views.classes
        if not known or known == wanted:
            return
        if len(known) != len(wanted):
            count = f'{len(known)} class{"es" if len(known) > 1 else ""}'
            differs = f'{count}, the data set {len(wanted)}'
        else:
            label = next(i for i in range(len(wanted)) if known[i] != wanted[i])
            differs = f'{known[label]!r} as class {label}, the data set {wanted[label]!r}'
        raise ForgettingError(
            f'The checkpoint to forget from has {differs}; it must be trained on this data set, '
            'or metainfo.classes of the data set must name its classes in its order.'
        )
