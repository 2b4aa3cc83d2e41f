import copy
import hashlib

import torch
from torch import nn

from mmgslora.lora import fingerprint, inject_lora


def test_by_hand():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(0.0)
    one, zero = b'\x00\x00\x80\x3f', b'\x00\x00\x00\x00'
    text = b'bias (1,) torch.float32' + zero + b'weight (1, 1) torch.float32' + one
    assert fingerprint(model) == hashlib.sha256(text).hexdigest()


def test_any_weight_or_buffer_counts_and_adapters_do_not():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = fingerprint(model)
    adapted = copy.deepcopy(model)
    inject_lora(adapted, rank=2, target='0|2')
    assert fingerprint(adapted) == fingerprint(model.state_dict()) == before
    for change in ('0.weight', '3.running_mean', '3.num_batches_tracked'):
        other = copy.deepcopy(model)
        other.state_dict()[change].flatten()[0] += 1
        assert fingerprint(other) != before


def test_a_part_whose_name_holds_that_of_adapters_counts():
    one, other = (dict(flora_head=torch.full((1,), x)) for x in (0.0, 1.0))
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint({**one, 'head.lora_A': torch.ones(1)}) == fingerprint(one)
