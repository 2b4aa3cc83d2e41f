"""Accuracies counted by hand; two processes against one."""

import json
import multiprocessing
from itertools import count
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement

from mmgslora.datasets.protocol import ClassPartition
from mmgslora.errors import ForgettingError
from mmgslora.evaluation import remember_pretrained
from mmgslora.families.classifier.metric import ForgettingAccuracyMetric
from mmgslora.families.classifier.verification import verification_metrics
from mmgslora.records.record import metric_prefix

CLASSES = ('ann', 'bob', 'cid', 'dee', 'eve')
TASK = ClassPartition(
    task=2, forget=('ann',), retain=('bob', 'cid'), old=('dee',), missing=('eve',), classes=CLASSES
)
# (true class, cosines of the five classes). Right by arg-max: ann 1 of 4, bob 2 of 3, cid 1 of 1,
# dee 0 of 1, eve 1 of 2.
# With 0.35 off the true cosine: ann 0, bob 1 of 3 (the second falls behind), cid 0, dee 0, eve 1.
IMAGES = [
    (0, (0.3, 0.1, 0.0, 0.0, 0.0)),
    (0, (0.1, 0.3, 0.0, 0.0, 0.0)),
    (0, (0.0, 0.0, 0.5, 0.0, 0.0)),
    (0, (-0.2, 0.0, -0.5, 0.0, -0.1)),
    (1, (0.1, 0.9, 0.2, 0.3, 0.1)),
    (1, (0.0, 0.4, 0.1, 0.0, 0.0)),
    (1, (0.5, 0.4, 0.0, 0.0, 0.0)),
    (2, (0.0, 0.0, 0.3, 0.2, 0.1)),
    (3, (0.0, 0.2, 0.0, 0.1, 0.0)),
    (4, (0.0, 0.0, 0.0, 0.0, 0.9)),
    (4, (0.8, 0.0, 0.0, 0.0, 0.7)),
]
PER_CLASS = {'ann': 25, 'bob': 200 / 3, 'cid': 100, 'dee': 0, 'eve': 50}
WITH_MARGIN = {'ann': 0, 'bob': 100 / 3, 'cid': 0, 'dee': 0, 'eve': 50}
_names = count()


@pytest.fixture(autouse=True)
def hub():
    name = f'accuracy test {next(_names)}'
    yield MessageHub.get_instance(name)
    MessageHub._instance_dict.pop(name)


def data_samples(images=IMAGES, scale=64.0, embeddings=None):
    samples = []
    for i, (label, cosines) in enumerate(images):
        logits = (scale or 1) * torch.tensor(cosines)
        sample = BaseDataElement(
            gt_label=torch.tensor(label),
            pred_scores=logits.softmax(-1),
            pred_label=logits.argmax(),
            pred_logits=logits,
            embedding=torch.zeros(2) if embeddings is None else embeddings[i],
            metainfo=dict(img_id=i, img_path=f'{i}.png'),
        )
        if scale is not None:
            sample.set_metainfo(dict(logit_scale=scale))
        samples.append(sample)
    return samples


def measure(samples=None, **kwargs):
    """As MMEngine does it: in batches, through the evaluator."""
    samples = data_samples() if samples is None else samples
    evaluator = Evaluator(dict(type='ForgettingAccuracyMetric', **kwargs))
    evaluator.dataset_meta = dict(classes=CLASSES)
    for start in range(0, len(samples), 4):
        evaluator.process(samples[start : start + 4])
    return evaluator.evaluate(len(samples))


def per_class(metrics, head=''):
    keys = f'{head}per_class/'
    return {k[len(keys) :]: v for k, v in metrics.items() if k.startswith(keys)}


def test_without_a_partition():
    metrics = measure()
    assert per_class(metrics) == pytest.approx(PER_CLASS)
    rest = {key: value for key, value in metrics.items() if 'per_class/' not in key}
    # 5 of 11 images are right; the mean over classes is (25 + 66.7 + 100 + 0 + 50) / 5.
    assert rest == pytest.approx({'Acc': (175 + 200 / 3) / 5, 'top1': 500 / 11})


def test_groups():
    TASK.publish()
    metrics = measure()
    assert list(metrics)[:4] == ['Acc_f', 'Acc_r', 'Acc_o', 'Acc_m']
    assert metrics['Acc_f'] == 25 and metrics['Acc_r'] == pytest.approx((200 / 3 + 100) / 2)
    assert metrics['Acc_o'] == 0 and metrics['Acc_m'] == 50
    assert 'Drop' not in metrics and 'H' not in metrics
    assert metrics['forgotten_name_rate'] == 20  # one of ann; four are of ann, one is of dee


def test_over_images_as_the_authors_have_it():
    """ann 1 of 4; bob, cid and the missing eve 2 + 1 + 1 of 3 + 1 + 2; dee 0 of 1."""
    before = [(label, [float(i == label) for i in range(5)]) for label, _ in IMAGES]
    before[0] = (0, (0.1, 0.3, 0.0, 0.0, 0.0))  # one of ann's four is wrong
    remember_pretrained(measure(data_samples(before)))
    TASK.publish()
    metrics = measure(margin_at_test=0.35)
    assert metrics['paper/Acc_f'] == 25 and metrics['paper/Acc_o'] == 0
    assert metrics['paper/Acc_r'] == pytest.approx(400 / 6) and metrics['paper/Acc_m'] == 50
    assert metrics['paper/Drop'] == 50
    assert metrics['paper/H'] == pytest.approx(2 * (400 / 6) * 50 / (400 / 6 + 50))
    # With the margin: bob 1, cid 0, eve 1 of 6.
    assert metrics['margin_at_test/paper/Acc_r'] == pytest.approx(200 / 6)


def test_over_images_a_class_counts_by_its_images():
    """Two classes to forget, from 3 of 4 and 1 of 1 right to 1 of 4 and 1 of 1."""
    partition = ClassPartition(
        task=1, forget=('ann', 'bob'), retain=('cid', 'dee', 'eve'), classes=CLASSES
    )
    partition.publish()
    right, wrong = (0.9, 0.0, 0.0, 0.0, 0.1), (0.0, 0.0, 0.0, 0.0, 0.9)
    bob = (1, (0.0, 0.9, 0.0, 0.0, 0.0))
    remember_pretrained(measure(data_samples([(0, right)] * 3 + [(0, wrong), bob])))
    metrics = measure(data_samples([(0, right)] + [(0, wrong)] * 3 + [bob]))
    assert metrics['Acc_f'] == pytest.approx((25 + 100) / 2)
    assert metrics['paper/Acc_f'] == 40
    assert metrics['paper/Drop'] == pytest.approx(80 - 40)
    assert metrics['Drop'] == pytest.approx((75 + 100) / 2 - (25 + 100) / 2)


def test_two_forgotten_classes_that_swapped_their_names_are_still_named():
    TASK.publish()
    ann, dee = (0.9, 0.0, 0.0, 0.1, 0.0), (0.1, 0.0, 0.0, 0.9, 0.0)
    metrics = measure(data_samples([(0, dee), (3, ann), (1, ann), (2, dee)]))
    assert metrics['Acc_f'] == metrics['Acc_o'] == 0
    assert metrics['forgotten_name_rate'] == 100


@pytest.mark.parametrize('prefix', [None, 'test'])
def test_drop_and_h_from_the_pretrained_model(prefix):
    before = [(label, [float(i == label) for i in range(5)]) for label, _ in IMAGES]
    pretrained = measure(data_samples(before), prefix=prefix, margin_at_test=0.35)
    remember_pretrained(pretrained)
    TASK.publish()
    metrics = measure(prefix=prefix, margin_at_test=0.35)
    head = f'{prefix}/' if prefix else ''
    retained = (200 / 3 + 100) / 2
    assert metrics[f'{head}Drop'] == 75
    assert metrics[f'{head}H'] == pytest.approx(2 * retained * 75 / (retained + 75))
    assert metrics[f'{head}margin_at_test/Drop'] == 100
    retained = 100 / 6
    expected = 2 * retained * 100 / (retained + 100)
    assert metrics[f'{head}margin_at_test/H'] == pytest.approx(expected)
    # Known from the first evaluation, and not needed again.
    assert set(per_class(pretrained, f'{head}margin_at_test/')) == set(CLASSES)
    assert not per_class(metrics, f'{head}margin_at_test/')


def test_margin_at_test_is_an_extra():
    TASK.publish()
    plain, metrics = measure(), measure(margin_at_test=0.35)
    assert per_class(metrics, 'margin_at_test/') == pytest.approx(WITH_MARGIN)
    assert metrics['margin_at_test/Acc_f'] == 0
    assert metrics['margin_at_test/Acc_r'] == pytest.approx(100 / 6)
    extra = {key for key in metrics if key.startswith('margin_at_test/')}
    assert {key: value for key, value in metrics.items() if key not in extra} == plain
    # The scale of the logits is the head's, whatever it is; a smaller margin changes less.
    assert measure(data_samples(scale=10.0), margin_at_test=0.35) == metrics
    smaller = per_class(measure(margin_at_test=0.05), 'margin_at_test/')
    assert smaller == pytest.approx(PER_CLASS)


def test_margin_needs_cosines():
    with pytest.raises(ForgettingError, match='margin_at_test needs a head of cosines'):
        measure(data_samples(scale=None), margin_at_test=0.35)


def test_class_without_images_is_left_out():
    TASK.publish()
    metrics = measure(data_samples([image for image in IMAGES if image[0] not in (2, 3)]))
    assert set(per_class(metrics)) == {'ann', 'bob', 'eve'}
    assert metrics['Acc_r'] == pytest.approx(200 / 3) and 'Acc_o' not in metrics
    assert metrics['Acc'] == pytest.approx((25 + 200 / 3 + 50) / 3)


def test_report_finds_the_prefix():
    TASK.publish()
    embeddings = torch.randn(len(IMAGES), 3)
    samples = data_samples(embeddings=embeddings)
    metrics = measure(samples, margin_at_test=0.35, verification=True)
    assert metric_prefix(dict(tasks=[dict(metrics=metrics)])) == 'Acc_'


def test_verification_within_groups():
    embeddings = torch.randn(len(IMAGES), 3)
    samples = data_samples(embeddings=embeddings)
    labels = torch.tensor([label for label, _ in IMAGES])

    def alone(*names):
        mine = torch.tensor([CLASSES[label] in names for label in labels])
        return verification_metrics(embeddings[mine], labels[mine])

    everybody = measure(samples, verification=True)
    TASK.publish()
    metrics = measure(samples, verification=True)
    for group, expected in (('retain', alone('bob', 'cid')), ('forget', alone('ann', 'dee'))):
        assert set(expected) == {'AUC', 'TAR@FAR=0.01'}
        for key, value in expected.items():
            assert metrics[f'verification/{group}_{key}'] == pytest.approx(value)
    assert not any('all_' in key for key in metrics)
    assert everybody['verification/all_AUC'] == pytest.approx(alone(*CLASSES)['AUC'])
    assert 'verification/forget_AUC' not in everybody


def test_verification_left_out_where_a_group_has_no_pairs():
    ClassPartition(task=1, forget=('cid',), retain=('ann', 'bob'), classes=CLASSES).publish()
    metrics = measure(data_samples(embeddings=torch.randn(11, 3)), verification=True)
    assert 'verification/retain_AUC' in metrics  # cid has a single image
    assert not any(key.startswith('verification/forget') for key in metrics)


def rank_of_two(rank, samples, folder):
    """One of two processes; it writes what its metric returns."""
    torch.set_num_threads(1)  # threads do not survive a fork
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    metric = ForgettingAccuracyMetric(margin_at_test=0.35, verification=True)
    metric.dataset_meta = dict(classes=CLASSES)
    # As DefaultSampler deals them out: every second image, and the first once more.
    mine = (samples + samples[:1])[rank::2]
    for start in range(0, len(mine), 4):
        metric.process(None, [sample.to_dict() for sample in mine[start : start + 4]])
    Path(folder, f'{rank}.json').write_text(json.dumps(metric.evaluate(len(samples))))


def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MMEngine leaves .dist_test/ where it runs
    TASK.publish()
    samples = data_samples(embeddings=torch.randn(len(IMAGES), 3))
    alone = measure(samples, margin_at_test=0.35, verification=True)
    fork = multiprocessing.get_context('fork')
    ranks = [fork.Process(target=rank_of_two, args=(i, samples, tmp_path)) for i in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    for i in (0, 1):
        assert json.loads((tmp_path / f'{i}.json').read_text()) == pytest.approx(alone)
