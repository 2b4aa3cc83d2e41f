"""Views with a few hand-made numbers, as the tests of the methods read them."""

import torch

from mmgslora.families import View


def view(loss_cls, log_probs, teacher=None, drift=None, classes=(1,), old=()):
    terms = dict(
        loss_cls=torch.tensor(loss_cls), loss_bbox=torch.tensor(0.5), loss_iou=torch.tensor(0.25)
    )
    return View(
        loss=sum(terms.values()),
        terms=terms,
        labels=torch.tensor([1]),
        logits=torch.zeros(1, 3),
        embeddings=torch.zeros(1, 4),
        log_probs=torch.tensor(log_probs),
        states=torch.zeros(len(log_probs), 4),
        classes=torch.tensor(classes),
        gone=torch.tensor([*classes, *old]),
        teacher_log_probs=None if teacher is None else torch.tensor(teacher),
        drift=None if drift is None else torch.tensor(drift),
    )
