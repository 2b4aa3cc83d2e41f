"""Accuracy once per class, then grouped by what is forgotten, retained, old and missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.evaluation.grouping import group_by_partition
from mmgslora.evaluation.pretrained import pretrained_values
from mmgslora.families.classifier.verification import verification_metrics


@METRICS.register_module()
class ForgettingAccuracyMetric(BaseMetric):
    """Top-1 accuracy of forgotten, retained, old and missing classes, in percent.

    Reads what :class:`mmgslora.models.Classifier` predicts. Which class is what now comes
    from :meth:`ClassPartition.current`. It returns

    - ``per_class/<name>``: accuracy on the images of the class, for classes with images;
      ``Acc``: their mean; ``top1``: accuracy over all images.

    and, where a partition is published,

    - ``Acc_f, Acc_r, Acc_o, Acc_m, Drop, H``: see :func:`group_by_partition`. The predicted class
      is the plain arg-max.
    - ``forgotten_name_rate``: share of the images of all classes that must be gone, earlier ones
      too, that still get the name of any of them. Acc_f and Acc_o only see the right names: two
      classes that are taken for each other have an accuracy of 0.
    - ``paper/Acc_f``, ``_r``, ``_o``, ``_m``, ``Drop`` and ``H``: as the authors' code measures,
      over the images of a group instead of its classes, so that a class with many images counts
      more; and Acc_r is over retained and missing classes together, as in their tables.
    - the same under ``margin_at_test/``, if asked for: the true class's cosine is lowered by the
      margin before the arg-max, as the authors' face code evaluates. It makes forgetting look
      easier and the model worse; it serves the comparison with their tables only.

    and with ``verification``, see :func:`verification_metrics`,

    - ``verification/retain_AUC``, ``verification/retain_TAR@FAR=0.01`` and the same with
      ``forget`` for the identities forgotten now or earlier, pairs being made within a group;
      with ``all`` for all identities where no partition is published.

    Drop and H need the pre-trained model's values in the message hub, see
    :func:`remember_pretrained`. Its evaluation also returns ``margin_at_test/per_class/<name>``.

    Args:
        margin_at_test: The margin in cosines, such as the 0.35 of CosFace. Defaults to None: left
            out.
        verification: Whether to measure face verification. Defaults to False.
        collect_device: As for BaseMetric. Defaults to 'cpu'.
        prefix: As for BaseMetric. Defaults to None.
        collect_dir: As for BaseMetric. Defaults to None.

    Raises:
        ForgettingError: ``margin_at_test`` is given and the classifier's head has no cosines.
    """

    # Not None, for which MMEngine would warn; the keys get no prefix either way.
    default_prefix = ''

    def __init__(
        self,
        margin_at_test: float | None = None,
        verification: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.margin_at_test = margin_at_test
        self.verification = verification

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Keep of every image its label, whether it is found, and its embedding if needed."""
        for sample in data_samples:
            label = int(sample['gt_label'])
            predicted = int(sample['pred_label'])
            result = dict(label=label, predicted=predicted, correct=predicted == label)
            if self.margin_at_test is not None:
                result['correct_with_margin'] = self._correct_with_margin(sample, label)
            if self.verification:
                result['embedding'] = sample['embedding'].detach().cpu().float()
            self.results.append(result)

    def _correct_with_margin(self, sample: dict, label: int) -> bool:
        scale = sample.get('logit_scale')
        if scale is None:
            raise ForgettingError(
                'margin_at_test needs a head of cosines such as CosineMarginHead; this one has '
                'none, so leave margin_at_test out.'
            )
        logits = sample['pred_logits'].clone()
        logits[label] -= scale * self.margin_at_test
        return int(logits.argmax()) == label

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Read every number of the class description off the images."""
        per_class = self._per_class(results, 'correct')
        classes = self.dataset_meta['classes']
        images = Counter(classes[result['label']] for result in results)
        metrics = {**self._grouped(per_class, images), **self._name_rate(results)}
        if self.margin_at_test is not None:
            with_margin = self._per_class(results, 'correct_with_margin')
            grouped = self._grouped(with_margin, images, 'margin_at_test/')
            metrics.update({f'margin_at_test/{key}': value for key, value in grouped.items()})
            if self._pretrained('') is None:
                for name, accuracy in with_margin.items():
                    metrics[f'margin_at_test/per_class/{name}'] = accuracy
        if self.verification:
            metrics.update(self._verify(results))
        if results:
            metrics['Acc'] = fmean(per_class.values())
            metrics['top1'] = 100 * fmean(result['correct'] for result in results)
        return {**metrics, **{f'per_class/{name}': value for name, value in per_class.items()}}

    def _per_class(self, results: list[dict], key: str) -> dict[str, float]:
        """Percent of each class's images for which ``key`` is true, by class name."""
        found = defaultdict(list)
        for result in results:
            found[result['label']].append(result[key])
        classes = self.dataset_meta['classes']
        return {classes[label]: 100 * fmean(found[label]) for label in sorted(found)}

    def _grouped(
        self, per_class: dict[str, float], images: dict[str, int], keys: str = ''
    ) -> dict[str, float]:
        partition = ClassPartition.current()
        if partition is None:
            return {}
        pretrained = self._pretrained(f'{keys}per_class/')
        grouped = group_by_partition(per_class, partition, pretrained, prefix='Acc')
        as_theirs = replace(partition, retain=partition.retain + partition.missing)
        theirs = group_by_partition(per_class, as_theirs, pretrained, prefix='Acc', weights=images)
        return {**grouped, **{f'paper/{key}': value for key, value in theirs.items()}}

    def _name_rate(self, results: list[dict]) -> dict[str, float]:
        partition = ClassPartition.current()
        if partition is None:
            return {}
        gone = {*partition.labels('forget'), *partition.labels('old')}
        named = [result['predicted'] in gone for result in results if result['label'] in gone]
        return {'forgotten_name_rate': 100 * fmean(named)} if named else {}

    def _verify(self, results: list[dict]) -> dict[str, float]:
        partition = ClassPartition.current()
        groups = {'all': self.dataset_meta['classes']}
        if partition is not None:
            groups = {'retain': partition.retain, 'forget': partition.forget + partition.old}
        metrics = {}
        for group, names in groups.items():
            for key, value in self._verify_group(results, names).items():
                metrics[f'verification/{group}_{key}'] = value
        return metrics

    def _verify_group(self, results: list[dict], names: Iterable[str]) -> dict[str, float]:
        labels = {self.dataset_meta['classes'].index(name) for name in names}
        members = [result for result in results if result['label'] in labels]
        if not members:
            return {}
        return verification_metrics(
            torch.stack([result['embedding'] for result in members]),
            torch.tensor([result['label'] for result in members]),
        )

    def _pretrained(self, keys: str) -> dict[str, float] | None:
        return pretrained_values(f'{self.prefix}/{keys}' if self.prefix else keys)
