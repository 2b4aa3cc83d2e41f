import math

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import LoRAGroup, discover_groups, find_blocks, inject_lora, lora_layers

from .tiny_models import TorchTransformer, Transformer, ViT


def parameter(*values, dtype=torch.float32):
    return nn.Parameter(torch.tensor([values], dtype=dtype))


def test_one_group_per_block():
    model = ViT()
    names = inject_lora(model, rank=2)
    layers = lora_layers(model)
    groups = discover_groups(model)
    assert [group.name for group in groups] == ['transformer.layers.0.1', 'transformer.layers.1.1']
    for group, members in zip(groups, (names[:2], names[2:])):
        assert [id(a) for a in group.A] == [id(layers[name].lora_A) for name in members]
        assert [id(b) for b in group.B] == [id(layers[name].lora_B) for name in members]


def test_names_without_a_shared_part():
    model = TorchTransformer()
    inject_lora(model, rank=2)
    assert [group.name for group in discover_groups(model)] == [
        'encoder.layers.0',
        'decoder.layers.0',
        'decoder.layers.1',
    ]
    alone = nn.TransformerEncoderLayer(8, 2, 16)
    inject_lora(alone, rank=2)
    assert [group.name for group in discover_groups(alone)] == ['TransformerEncoderLayer']


def test_blocks_are_the_same_after_injection():
    model = Transformer()
    before = find_blocks(model)
    inject_lora(model, rank=2)
    assert find_blocks(model) == before


def test_attention_layers_belong_to_their_block_and_others_to_their_parent():
    model = ViT()
    inject_lora(model, rank=2, target=r'.*\.(to_qkv|net\.0)|mlp_head.*')
    groups = discover_groups(model)
    assert [group.name for group in groups] == [
        'transformer.layers.0',
        'transformer.layers.1',
        'mlp_head',
    ]
    assert [len(group.A) for group in groups] == [2, 2, 2]


def test_layers_directly_in_the_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject_lora(model, rank=2, target='.*')
    assert [(group.name, len(group.B)) for group in discover_groups(model)] == [('Sequential', 2)]


def test_a_single_layer_outside_every_block_is_named_after_its_parent():
    model = ViT()
    inject_lora(model, rank=2, target='mlp_head.0')
    assert [group.name for group in discover_groups(model)] == ['mlp_head']


def test_block_names_are_not_mixed_up_with_longer_ones():
    model = Transformer(depth=11)
    inject_lora(model, rank=2)
    groups = discover_groups(model)
    assert [group.name for group in groups] == [f'layers.{i}.1' for i in range(11)]
    assert all(len(group.A) == 2 for group in groups)


def test_other_groupings_cover_the_same_matrices():
    model = ViT()
    names = inject_lora(model, rank=2)
    by_module, by_matrix = discover_groups(model, 'module'), discover_groups(model, 'matrix')
    assert [group.name for group in by_module] == names
    assert [group.name for group in by_matrix] == [
        f'{name}.{matrix}' for name in names for matrix in ('lora_A', 'lora_B')
    ]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    for by in ('block', 'module', 'matrix'):
        found = [id(p) for group in discover_groups(model, by) for p in group.A + group.B]
        assert len(found) == len(trainable)
        assert set(found) == trainable


@pytest.mark.parametrize(('by', 'held'), [('block', [0, 1]), ('module', [0]), ('matrix', [])])
def test_the_layers_of_a_group_that_is_held_learn_no_more(by, held):
    """Of two blocks of two layers each; a single matrix shares its layer with another."""
    model = ViT()
    names = inject_lora(model, rank=2)
    discover_groups(model, by)[0].hold()
    layers = lora_layers(model)
    assert [i for i, name in enumerate(names) if not layers[name].learns] == held


def test_an_unknown_grouping():
    model = ViT()
    inject_lora(model, rank=2)
    with pytest.raises(ForgettingError, match="'layer'; allowed are 'block', 'module'"):
        discover_groups(model, by='layer')


def test_norms_worked_by_hand():
    group = LoRAGroup('g', [parameter(1.0, 2.0)], [parameter(4.0), parameter(2.0)])
    assert group.norm().item() == 5.0  # sqrt(1 + 4 + 16 + 4)
    assert group.norm_B().item() == pytest.approx(math.sqrt(20))
    assert group.norm(eps=11.0).item() == 6.0
    with pytest.raises(ForgettingError, match="'a' holds no B"):
        LoRAGroup('a', [parameter(1.0)], []).norm_B()


def test_norms_are_taken_in_float32_at_least():
    # 300^2 overflows float16, and 256 + 1 is 256 in bfloat16.
    half = LoRAGroup('g', [parameter(300.0, 400.0, dtype=torch.float16)], [])
    assert half.norm().item() == 500.0
    assert half.norm().dtype == torch.float32
    brain = LoRAGroup('g', [], [parameter(16.0, 1.0, dtype=torch.bfloat16)])
    assert brain.norm_B().item() == pytest.approx(math.sqrt(257), rel=1e-6)
    double = LoRAGroup('g', [parameter(1.0, dtype=torch.float64)], [parameter(1.0)])
    assert double.norm().dtype == torch.float64
