"""The one structure in which families and methods meet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class View:
    """One side of a training step: what a method may know of it, whatever is being trained.

    Attributes:
        loss: Scalar task loss of this view, the sum of ``terms``; no auxiliary decoder layers.
        terms: Its named parts, classification first (``loss_cls``, ``loss_bbox``, ``loss_iou``
            for detectors, ``loss_ce`` for classifiers).
        labels: (n,) true label of each matched query, or of each image.
        logits: (n, C) the classifier's output for them.
        embeddings: (n, D) what the classifier head reads for them.
        log_probs: (m, C) or (m, C + 1) log-probability of every class in every prediction of the
            view's images: all queries of a detector, one row per image for a classifier. A column
            after the classes stands for "no object", where the model is trained to say that: rows
            of a softmax always sum to 1.
        states: (m, D) what the classifier head reads for each of these predictions.
        classes: (k,) labels of the classes this side is about in the current task.
        gone: (g,) labels of all classes that must be gone after the current task, those of the
            tasks before it too.
        teacher_log_probs: (m, C) that of the adapter-free model, of the classes alone, without
            gradient. None unless the method asks for a teacher.
        teacher_states: (m, D) likewise. None unless the method asks for a teacher.
        drift: Scalar distance of this view's outputs, the classes to forget left out, from
            those of the adapter-free model. None unless the method asks for a teacher.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    labels: Tensor
    logits: Tensor
    embeddings: Tensor
    log_probs: Tensor
    states: Tensor
    classes: Tensor
    gone: Tensor
    teacher_log_probs: Tensor | None = None
    teacher_states: Tensor | None = None
    drift: Tensor | None = None
