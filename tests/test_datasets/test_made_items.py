"""A pipeline that draws once for a task: the same draws in any order, kept or not."""

# ruff: noqa: NPY002  pipelines draw from the global generators

import random

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from mmgslora.datasets.made_items import MadeItems


class Pipeline:
    """Makes items of 12 bytes and counts how often."""

    def __init__(self):
        self.made = 0

    def __call__(self, index):
        self.made += 1
        drawn = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
        return dict(inputs=drawn, data_samples=BaseDataElement(metainfo=dict(index=index)))


@pytest.fixture
def pipeline():
    return Pipeline()


def test_drawn_once_for_a_task_whoever_drew_before(pipeline):
    items = MadeItems(1e9)
    items.clear(0, 1)
    first = [items.get(i, pipeline)['inputs'] for i in (0, 1)]
    again = items.emptied()
    random.random(), np.random.rand(), torch.rand(())
    second = [again.get(i, pipeline)['inputs'] for i in (1, 0)]
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])
    assert not torch.equal(*first)
    items.clear(0, 2)
    assert not torch.equal(items.get(0, pipeline)['inputs'], first[0])


def test_others_draw_as_if_nothing_had_happened(pipeline):
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    alone = float(torch.rand(())), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    MadeItems(0).get(5, pipeline)
    assert (float(torch.rand(())), np.random.rand(), random.random()) == alone


def test_a_gpu_draws_as_if_nothing_had_happened(pipeline, monkeypatch):
    """Dropout draws there, and its state is not the one that is put back."""
    seeded = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    MadeItems(0).get(5, pipeline)
    assert not seeded


@pytest.mark.parametrize('room, made', [(0, 4), (12, 3), (24, 2)])
def test_kept_as_far_as_there_is_room(pipeline, room, made):
    items = MadeItems(room)
    seen = [items.get(i, pipeline)['inputs'] for i in (0, 1, 0, 1)]
    assert pipeline.made == made
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


def test_what_is_handed_out_may_be_written_to(pipeline):
    items = MadeItems(1e9)
    items.get(0, pipeline)['data_samples'].set_metainfo(dict(pad_shape=(2, 2)))
    assert 'pad_shape' not in items.get(0, pipeline)['data_samples']
