"""Views and moments with a few hand-made numbers, as the tests of the methods read them."""

from types import SimpleNamespace

import torch

from mmgslora.families.view import Matching, Outputs, View
from mmgslora.methods import Context, Task


def labels(numbers):
    return torch.tensor(list(numbers), dtype=torch.long)


def context(groups=(), number=1, names=('a', 'b', 'c'), forget=(1,), old=(), epoch=0, **moment):
    """A moment of a task of a model with these LoRA groups; the other classes stay."""
    gone = {*forget, *old}
    retain = [i for i in range(len(names)) if i not in gone]
    task = Task(number, tuple(names), labels(forget), labels(retain), labels(old), labels([]))
    tune = SimpleNamespace(groups=lambda by: list(groups), has_groups=bool(groups))
    return Context(SimpleNamespace(tune=tune), task, epoch=epoch, **moment)


def outputs(log_probs, embeddings=None):
    """Outputs of a head of sigmoids with these log-probabilities, (m, C) numbers up to 0."""
    log_probs = torch.as_tensor(log_probs, dtype=torch.float64).clamp(max=-1e-9)
    embeddings = torch.zeros(len(log_probs), 4) if embeddings is None else embeddings
    return Outputs(log_probs - (-log_probs.expm1()).log(), embeddings, kind='sigmoid')


def view(
    side, loss_cls, log_probs, teacher=None, drift=None, embeddings=None, of=(1,), matched=(0,)
):
    """One side; ``drift`` is what its divergence from the teacher is, ``of`` its true labels."""
    terms = dict(
        loss_cls=torch.tensor(loss_cls), loss_bbox=torch.tensor(0.5), loss_iou=torch.tensor(0.25)
    )
    now = outputs(log_probs, embeddings)
    if drift is not None:
        now.divergence = lambda other, without: torch.tensor(drift)
    names = () if teacher is None else ('original', 'task_start')
    teachers = dict.fromkeys(names, teacher)
    return View(side, now, lambda: Matching(labels(of), labels(matched), terms), teachers)


def sides(forget, retain):
    return dict(forget=forget, retain=retain)
