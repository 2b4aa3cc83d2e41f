"""Draws what the model answered before forgetting and what it answers now."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import Dataset

from mmgslora.datasets.protocol import Protocol
from mmgslora.families.drawing import BeforeAfter, Drawing, Found
from mmgslora.families.registry import FAMILIES
from mmgslora.report.charts import write_image
from mmgslora.settings import Count, Share, checked

_KEY = 'before_after'


@HOOKS.register_module()
class ImageHook(Hook):
    """Writes ``before_after.png`` after every task: the same images, then and now.

    They come from the split that the loop measures on; which they are and how they are drawn is
    the family's (:class:`mmgslora.families.drawing.Drawing`). What was found in them before any
    forgetting is kept in the message hub, where a resumed run finds it. Where that run serves
    further tasks, images of their classes take half of the places, with what the model finds at
    that time.

    Args:
        num_images: How many images. Defaults to None: what the family draws well, 6 for detectors
            and 12 for classifiers.
        score_thr: Score from which a detection is drawn. Defaults to 0.3.
    """

    priority = 'HIGH'  # a method may begin with other weights than the original's

    @checked
    def __init__(self, num_images: Count | None = None, score_thr: Share = 0.3) -> None:
        self.num_images = num_images
        self.score_thr = score_thr

    @master_only
    def before_forget_task(self, runner) -> None:
        kept = runner.message_hub.runtime_info.get(_KEY, dict(indices=[], found=[], tasks=0))
        protocol = runner.train_loop.protocol
        # A checkpoint that does not say for how many tasks its images were chosen keeps them.
        done = kept.get('tasks', len(protocol))
        if done == len(protocol):
            return
        drawing, split = self._drawing(runner), runner.train_loop.evaluate_on
        known = dict(zip(kept['indices'], kept['found']))
        count = self.num_images or drawing.num_images
        chosen = drawing.choose(
            _dataset(runner),
            _without(protocol, done),
            lambda index: known[index] if index in known else _look(runner, drawing, index),
            count,
        )
        rule = f'The first {split} {drawing.rule}'
        if done:
            names = ', '.join(name for task in protocol.tasks[done:] for name in task)
            rule = f'{kept["rule"]}; for {names}, asked for later, as found just before that'
        # Images of before and of now in turn, so that there are some of both.
        in_turn = [index for pair in zip_longest(known, chosen) for index in pair]
        indices = [index for index in dict.fromkeys(in_turn) if index is not None][:count]
        found = [{**chosen, **known}[index] for index in indices]
        kept = dict(indices=indices, found=found, rule=rule, tasks=len(protocol))
        runner.message_hub.update_info(_KEY, kept)

    @master_only
    def after_forget_task(self, runner, metrics: dict) -> None:
        before = runner.message_hub.get_info(_KEY)
        if not before['indices']:
            return
        drawing, loop = self._drawing(runner), runner.train_loop
        after = [_look(runner, drawing, index) for index in before['indices']]
        shown = BeforeAfter(
            [_dataset(runner).get_data_info(index) for index in before['indices']],
            before['found'],
            after,
            loop.protocol.classes,
            [name for task in loop.protocol.tasks[: loop.task] for name in task],
        )
        path = Path(runner.work_dir, 'before_after.png')
        write_image(path, lambda: drawing.figure(shown))

    def _drawing(self, runner) -> Drawing:
        return FAMILIES[runner.train_loop.model.model_key].drawing(self.score_thr)


def _without(protocol: Protocol, done: int) -> Protocol:
    """The protocol of a model that has served the first ``done`` tasks."""
    gone = [name for task in protocol.tasks[:done] for name in task]
    return Protocol(
        protocol.classes,
        protocol.tasks[done:],
        protocol.missing,
        forgotten=[*protocol.forgotten, *gone],
    )


def _dataset(runner) -> Dataset:
    """The data set that the run's numbers are measured on."""
    return runner.train_loop.evaluation_loop.dataloader.dataset


def _look(runner, drawing: Drawing, index: int) -> Found:
    model = runner.train_loop.model
    model.eval()
    with torch.no_grad():
        return drawing.found(model.test_step(pseudo_collate([_dataset(runner)[index]]))[0])
