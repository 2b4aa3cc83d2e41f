"""UNDO: a noised copy of a model that forgot learns its outputs again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgslora.errors import ForgettingError
from mmgslora.families.view import Outputs, View
from mmgslora.loading import read_checkpoint
from mmgslora.losses import box_iou, joint_weighted_mean, mean_over_processes
from mmgslora.methods.base import METHODS, Context, Method, Task
from mmgslora.methods.confusion import ClassConfusion
from mmgslora.settings import NonNegative, Share, checked

if TYPE_CHECKING:
    from mmgslora.tuning import Tuner

_SURE = 0.5
"""Probability of a class from which on the teacher counts as sure of it."""
_ON_OBJECT = 0.5
"""IoU from which on a predicted box counts as being on an object, as for COCO's AP50."""


@METHODS.register_module()
class UNDO(Method):
    r"""Unlearn-noise-distil-on-outputs (Lee et al. 2025, arXiv 2506.06278), for detection too.

    A model that forgot, the *teacher*, is a file that another run has left. A copy of it,

    .. math:: \theta = (1 - a)\, \theta_{teacher} + a\, \theta_{random},

    learns what the teacher says, without the classes that must be gone. What of these lay below
    the teacher's outputs is noise then, and distilling does not bring it back. The run starts from
    the same original as the teacher's did, so that record, certificate and audit compare with that;
    its one task forgets all that the teacher has forgotten. After each task of a sequence instead:
    the same tasks, and a name of a file with ``{task:02d}`` in it.

    Ours, for detectors and against what comes back on the way:

    .. math:: L = \operatorname{mean}_l (D_l + w_s S_l + w_b B_l) + w_c C

    - :math:`D`, of both views, is the distance of a decoder layer's outputs from the teacher's last
      layer's (:meth:`~mmgslora.families.view.Outputs.divergence`), boxes weighted by how sure the
      teacher is of a class that stays. A softmax without background is asked on the retain view
      alone: what else the teacher calls a forgotten image would tell its class.
    - :math:`S` ranks forgotten objects below nothing, all their classes alike. On the predictions
      whose box lies on one (those matched to the truth of the forget view, and others with an IoU
      of .5 to their box) it is :math:`\mathrm{ReLU}(\log p_{qc} - \ell + m)`, for every class c to
      forget; :math:`\ell` is the mean log-probability that the teacher gives them where there is
      nothing. For a softmax without background, a hinge on the odds of all that must be gone.
    - :math:`B = (\log p_{qc} - \ell)^2`, weighted by how sure the teacher is that nothing is there.
    - :math:`C` is :class:`~mmgslora.methods.confusion.ClassConfusion` on the matched predictions of
      the forget view, in all decoder layers or, of a classifier, after all blocks. It comes in
      linearly over the first ``ramp`` of the task.

    Args:
        teacher: Plain checkpoint of the model that forgot, such as ``merged/task_03.pth`` of a
            finished run; ``{task}`` in it stands for the number of the task.
        noise: a, one share for everything that is trained, or shares by the beginning of the
            parameters' names, ``dict(decoder=0.5, encoder=0.2)``; the longest that fits counts, and
            what fits none is not noised. Defaults to 0.5.
        suppress_weight: :math:`w_s`. Defaults to 1.
        margin: m, in nats; detectors only. Defaults to 3.
        bound: Nats of odds; classifiers only. Defaults to 9.
        background_weight: :math:`w_b`. Defaults to 0.2.
        confusion_weight: :math:`w_c`. Defaults to 0.3.
        ramp: Defaults to 0.3.

    Raises:
        ForgettingError: From :meth:`check`: what is trained is not the model's own. From
            :meth:`check_files` and :meth:`before_task`: the teacher cannot be read, is sealed,
            does not fit, or differs from the model in what is not trained; or a share is of
            nothing.
    """

    tune = dict(type='Full')
    teachers = ('teacher',)

    @checked
    def __init__(
        self,
        teacher: str,
        noise: Share | dict[str, Share] = 0.5,
        suppress_weight: NonNegative = 1.0,
        margin: NonNegative = 3.0,
        bound: NonNegative = 9.0,
        background_weight: NonNegative = 0.2,
        confusion_weight: NonNegative = 0.3,
        ramp: Share = 0.3,
    ) -> None:
        super().__init__()
        self.teacher, self.noise = teacher, noise
        self.suppress_weight, self.margin, self.bound = suppress_weight, margin, bound
        self.background_weight = background_weight
        self.confusion_weight, self.ramp = confusion_weight, ramp
        self._confusion = ClassConfusion()
        self.parts = [self._confusion] if confusion_weight else []

    def check(self, tune: Tuner) -> None:
        """See :class:`Method`."""
        names = [name for name, p in tune.model.named_parameters() if p.requires_grad]
        if any(map(tune.owns, names)):
            raise ForgettingError(
                f"tune.type is {type(tune).__name__!r}; UNDO adds noise to the model's own "
                "parameters and trains them, so it can be 'Full'."
            )

    def before_task(self, context: Context) -> None:
        """See :class:`Method`: the teacher is read and kept, the model becomes its noised copy."""
        super().before_task(context)
        model = context.model
        plain = model.plain_model
        learned = {name: p for name, p in plain.named_parameters() if p.requires_grad}
        shares = self._shares(learned)
        self._load(self._file(context.task.number), model)
        model.tune.keep('teacher')
        random = model.untrained(context.seed + context.task.number).state_dict()
        with torch.no_grad():
            for name, share in shares.items():
                learned[name].lerp_(random[name].to(learned[name]), share)

    def files(self, tasks: int) -> list[str]:
        """See :class:`Method`."""
        return [self._file(number) for number in range(1, tasks + 1)]

    def check_files(self, model: nn.Module, tasks: int) -> None:
        """See :class:`Method`."""
        for path in dict.fromkeys(self.files(tasks)):
            model.plain_model.load_state_dict(self._load(path, model))

    def _load(self, path: str, model: nn.Module) -> dict[str, Tensor]:
        """Give the model the teacher's weights and return its own, from which they may differ in
        what is trained alone.
        """
        plain = model.plain_model
        learned = {name for name, p in plain.named_parameters() if p.requires_grad}
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        content = read_checkpoint(path, 'The teacher')
        if sealed := (content.get('meta') or {}).get('sealed'):
            raise ForgettingError(
                f'The teacher {path!r} is sealed ({", ".join(sealed)}), and the seal would pass '
                'for forgetting; take the merged file of its task.'
            )
        model.load_state_dict(dict(content.get('state_dict', content)))
        for name, value in plain.state_dict().items():
            same = name in before and torch.equal(value, before[name])
            if name not in learned and not same:
                raise ForgettingError(
                    f'The teacher {path!r} differs from the model to start from in {name!r}, which '
                    'is not trained; start from the same original, and widen tune.target to all '
                    'that forgetting has changed.'
                )
        return before

    def _file(self, task: int) -> str:
        try:
            return self.teacher.format(task=task)
        except (KeyError, IndexError, ValueError) as error:
            raise ForgettingError(
                f'method.teacher is {self.teacher!r}; in braces there can be {{task}} alone, such '
                'as {task:02d}.'
            ) from error

    def _shares(self, learned: Mapping[str, nn.Parameter]) -> dict[str, float]:
        """The share of noise of each parameter that has any."""
        if not isinstance(self.noise, Mapping):
            return dict.fromkeys(learned, self.noise)
        fits = {
            name: [part for part in self.noise if f'{name}.'.startswith(f'{part}.')]
            for name in learned
        }
        for part in self.noise:
            if not any(part in parts for parts in fits.values()):
                raise ForgettingError(
                    f'method.noise has a share of {part!r}, where nothing is trained; trained are '
                    f'{", ".join(sorted({name.split(".")[0] for name in learned}))}.'
                )
        return {name: self.noise[max(parts, key=len)] for name, parts in fits.items() if parts}

    def losses(self, views: Mapping[str, View], context: Context) -> dict[str, Tensor]:
        """See :class:`Method`."""
        task, forget = context.task, views['forget']
        nameless = forget.now.kind == 'softmax'  # whatever it sees, it has to name something
        losses = {}
        for side, view in views.items():
            if not (nameless and side == 'forget'):
                layers = (*view.now.earlier, view.now)
                apart = [
                    x.divergence(view.teachers['teacher'], without=task.must_be_gone)
                    for x in layers
                ]
                losses[f'{side}_loss_distill'] = sum(apart) / len(layers)
        teacher, layers = forget.teachers['teacher'], (*forget.now.earlier, forget.now)
        matched, near = _on_objects(forget)
        stays = _stays(teacher, task)
        on = near if nameless else near * (1 - stays)
        empty = (1 - near) * (1 - stays)
        gone = _nameable(teacher, task)
        for x in layers:
            for name, value in self._on_layer(x, teacher, on, empty, gone).items():
                losses[name] = losses.get(name, 0) + value / len(layers)
        if self.confusion_weight:
            which = (forget.labels[:, None] == task.forget).int().argmax(-1)
            states = [x[matched] for x in _features(forget.now)]
            others = []
            if len(task.forget) == 1:
                retain = views['retain']
                sure = _stays(retain.teachers['teacher'], task) >= _SURE
                others = [x[sure] for x in _features(retain.now)]
            told = self._confusion.loss(states, which, len(task.forget), others)
            ramp = min(1.0, context.progress / self.ramp) if self.ramp else 1.0
            losses['forget_loss_confusion'] = self.confusion_weight * ramp * told
        return losses

    def _on_layer(
        self, now: Outputs, teacher: Outputs, on: Tensor, empty: Tensor, gone: Tensor
    ) -> dict[str, Tensor]:
        """S and B of one layer, weighted."""
        if now.kind == 'softmax':
            hinge = F.relu(now.log_odds(gone) + self.bound)
            return dict(forget_loss_suppress=self.suppress_weight * joint_weighted_mean(hinge, on))
        level = joint_weighted_mean(teacher.log_probs[:, gone].mean(-1), empty)
        over = now.log_probs[:, gone] - level
        hinge = F.relu(over + self.margin).mean(-1)
        rest = joint_weighted_mean(over.square().mean(-1), empty)
        return dict(
            forget_loss_suppress=self.suppress_weight * joint_weighted_mean(hinge, on),
            loss_background=self.background_weight * rest,
        )


def _features(now: Outputs) -> tuple[Tensor, ...]:
    """(m, D) what classes can be read off in each block or decoder layer."""
    return (*now.states, *(x.embeddings for x in (*now.earlier, now)))


def _stays(teacher: Outputs, task: Task) -> Tensor:
    """(m,) how sure the teacher is of a class that stays."""
    return teacher.class_log_probs.exp().index_fill(1, task.must_be_gone, 0).max(-1).values


def _nameable(teacher: Outputs, task: Task) -> Tensor:
    """(g,) labels that must be gone, without those that were sealed before the run.

    A sealed class has a score of exactly 0 everywhere, in all processes, far below any level of the
    others.
    """
    gone = task.must_be_gone
    scored = teacher.log_probs[:, gone].exp().any(0)
    return gone[mean_over_processes(scored.float()) > 0]


def _on_objects(view: View) -> tuple[Tensor, Tensor]:
    """Rows (n,) matched to the truth, and (m,) whether a prediction lies on an object: 0 or 1."""
    now, matched = view.now, view.matched
    near = torch.zeros(len(now.logits), dtype=torch.float32, device=now.logits.device)
    near[matched] = 1
    if now.boxes is not None and len(matched):
        boxes = now.boxes.detach()
        image = torch.arange(len(boxes), device=boxes.device) * view.images // len(boxes)
        same = image[:, None] == image[matched]
        overlaps = box_iou(boxes, boxes[matched]) * same
        near = torch.maximum(near, (overlaps.max(-1).values >= _ON_OBJECT).to(near))
    return matched, near
