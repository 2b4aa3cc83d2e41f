import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import (
    LoRALinear,
    adapters_disabled,
    check_live_adapters,
    discover_groups,
    find_blocks,
    inject_lora,
    lora_layers,
    merge_adapters,
    reset_adapters,
    trainable_share,
)
from mmgslora.losses.group_sparsity import group_penalty

from .tiny_models import TorchTransformer, Transformer, ViT, mmdet_config, small_detr

DETRS = [
    'detr/detr_r50_8xb2-150e_coco',
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco',
    'dab_detr/dab-detr_r50_8xb2-50e_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco',
    'dino/dino-4scale_r50_8xb2-12e_coco',
]


def fill_adapters(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(std=0.5, generator=generator)


def dense_twin(plain, lora_model):
    """The plain model with W + s B A in its weights, computed here in float64."""
    twin = copy.deepcopy(plain)
    for name, layer in lora_layers(lora_model).items():
        update = layer.lora_alpha / layer.rank * layer.lora_B.double() @ layer.lora_A.double()
        weight = twin.get_submodule(name).weight
        weight.data = (weight.double() + update).to(weight.dtype)
    return twin


# ---------------------------------------------------------------------------- find_blocks


def test_blocks_of_torch_layers():
    assert find_blocks(TorchTransformer()) == [
        'encoder.layers.0',
        'decoder.layers.0',
        'decoder.layers.1',
    ]
    assert find_blocks(nn.TransformerEncoderLayer(8, 2, 16)) == ['']


def test_blocks_that_are_module_lists():
    assert find_blocks(ViT()) == ['transformer.layers.0', 'transformer.layers.1']


def test_blocks_of_torchvision():
    models = pytest.importorskip('torchvision').models
    vit = models.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=3)
    assert find_blocks(vit) == [f'encoder.layers.encoder_layer_{i}' for i in range(2)]
    assert inject_lora(vit, rank=2) == [
        f'encoder.layers.encoder_layer_{i}.mlp.{j}' for i in range(2) for j in (0, 3)
    ]


@pytest.mark.parametrize('name', DETRS)
def test_blocks_of_mmdet(name):
    model = small_detr(name)
    blocks = [f'{side}.layers.{i}' for side in ('encoder', 'decoder') for i in range(2)]
    assert find_blocks(model) == blocks
    # Detectors with an FFN in the head (bbox_head.reg_ffn) are among them.
    assert inject_lora(model) == [
        f'{block}.ffn.layers.{linear}' for block in blocks for linear in ('0.0', '1')
    ]
    assert [group.name for group in discover_groups(model)] == [f'{b}.ffn' for b in blocks]


def test_the_heads_with_an_ffn_are_among_the_tested():
    assert any('reg_ffn' in name for name, _ in small_detr(DETRS[0]).named_modules())
    assert any('reg_ffn' in name for name, _ in small_detr(DETRS[1]).named_modules())


def test_blocks_of_swin():
    from mmdet.registry import MODELS

    config = mmdet_config('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco').backbone
    config.update(depths=[1, 1, 2, 1], embed_dims=12, convert_weights=False)
    swin = MODELS.build(config)
    blocks = [f'stages.{stage}.blocks.{i}' for stage, i in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]]
    assert find_blocks(swin) == blocks
    inject_lora(swin, rank=2)
    assert [group.name for group in discover_groups(swin)] == [f'{b}.ffn' for b in blocks]


def test_a_block_may_have_attention_in_its_name():
    class ResidualAttentionBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2)
            self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    assert find_blocks(nn.Sequential(ResidualAttentionBlock())) == ['0']


def test_square_projections_around_an_inner_attention_are_no_feed_forward():
    class CrossAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
            self.inner = nn.MultiheadAttention(8, 2)

    block = nn.ModuleDict({'attn': CrossAttention(), 'ffn': FeedForwardPair(8, 16)})
    model = nn.Sequential(block)
    assert find_blocks(model) == ['0']
    assert inject_lora(model, rank=2) == ['0.ffn.first', '0.ffn.second']


class FeedForwardPair(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)


def test_a_square_feed_forward_pair_counts_where_no_other_exists():
    model = Transformer(dim=8, hidden=8, depth=1)
    assert inject_lora(model, rank=2) == ['layers.0.1.fn.fn.net.0', 'layers.0.1.fn.fn.net.3']

    wide = nn.ModuleDict(
        {
            'attn': nn.MultiheadAttention(8, 2),
            'ffn': FeedForwardPair(8, 16),
            'branch': FeedForwardPair(8, 8),
        }
    )
    assert inject_lora(wide, rank=2) == ['ffn.first', 'ffn.second']


def test_attention_without_feed_forward_is_no_block_and_neither_is_an_mlp():
    assert find_blocks(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 3))) == []
    assert find_blocks(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))) == []


def test_a_shared_block_is_found_once():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert find_blocks(nn.Sequential(layer, nn.Sequential(layer))) == ['0']


# ---------------------------------------------------------------------------- inject_lora


def test_the_numbers_of_the_paper_for_mmdet():
    from mmdet.registry import MODELS

    model = MODELS.build(mmdet_config(DETRS[3]))
    total = sum(p.numel() for p in model.parameters())
    names = inject_lora(model, exclude=('backbone', 'neck'))
    # 12 blocks; per block A (8 x 256), B (1024 x 8), A (8 x 1024), B (256 x 8).
    assert trainable_share(model) == (12 * 8 * 2 * (256 + 1024), total)
    assert trainable_share(model)[0] == 245_760
    assert len(names) == 24
    groups = discover_groups(model)
    sides = ('encoder', 'decoder')
    assert [g.name for g in groups] == [f'{s}.layers.{i}.ffn' for s in sides for i in range(6)]
    assert all(len(group.A) == len(group.B) == 2 for group in groups)


@pytest.mark.parametrize('rank', [1, 3])
def test_only_the_adapters_train(rank):
    model = ViT()
    buffers_and_weights = {k: v.clone() for k, v in model.state_dict().items()}
    names = inject_lora(model, rank=rank, lora_alpha=4)
    assert names == [f'transformer.layers.{i}.1.fn.fn.net.{j}' for i in range(2) for j in (0, 3)]
    assert names == list(lora_layers(model))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f'{name}.{matrix}' for name in names for matrix in ('lora_A', 'lora_B')}

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 5, 8)).square().sum().backward()
        optimizer.step()
    check_live_adapters(model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in buffers_and_weights.items())
    assert all(layer.lora_B.any() for layer in lora_layers(model).values())


def test_a_fresh_injection_changes_no_output():
    model, x = ViT(), torch.randn(2, 5, 8)
    before = model(x)
    inject_lora(model, rank=2)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('grad', [False, True])
def test_the_fast_path_of_pytorch_does_not_drop_the_adapters(padded, grad):
    # In eval mode nn.TransformerEncoderLayer reads linear1.weight itself; with padding,
    # nn.TransformerEncoder also turns its input into a nested tensor.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    plain = nn.TransformerEncoder(layer, num_layers=2).eval()
    model = copy.deepcopy(plain)
    inject_lora(model, rank=2, lora_alpha=2)
    fill_adapters(model)
    x = torch.randn(3, 4, 8)
    mask = torch.arange(4) >= torch.tensor([[4], [3], [1]]) if padded else None
    with torch.set_grad_enabled(grad):
        ours = model(x, src_key_padding_mask=mask)
        expected = dense_twin(plain, model)(x, src_key_padding_mask=mask)
    seen = slice(None) if mask is None else ~mask
    torch.testing.assert_close(ours[seen], expected[seen], rtol=0, atol=1e-5)
    assert not torch.allclose(ours[seen], plain(x)[seen], atol=1e-2)


def test_target_regex_matches_whole_names():
    model = TorchTransformer()
    assert inject_lora(model, rank=2, target=r'decoder\.layers\.\d\.linear1') == [
        'decoder.layers.0.linear1',
        'decoder.layers.1.linear1',
    ]
    with pytest.raises(ForgettingError, match='matches no Linear'):
        inject_lora(TorchTransformer(), rank=2, target='linear1')


def test_exclude_takes_names_of_modules_not_of_their_neighbours():
    model = nn.ModuleDict({'body': ViT(), 'body2': ViT()})
    names = inject_lora(model, rank=2, exclude=('body',))
    assert len(names) == 4
    assert all(name.startswith('body2.') for name in names)

    model = nn.ModuleDict({'body': ViT(), 'body2': ViT()})
    names = inject_lora(model, rank=2, exclude='body2')
    assert all(name.startswith('body.') for name in names)


def test_a_linear_under_several_names_is_one_layer():
    block = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.ModuleDict({'a': block, 'b': nn.Sequential(block), 'head': block.linear2})
    assert inject_lora(model, rank=2) == ['a.linear1', 'a.linear2']
    assert model['head'] is model['a'].linear2 is model['b'][0].linear2
    assert isinstance(model['head'], LoRALinear)
    assert len(discover_groups(model)) == 1

    # A later name can be the one that matches.
    block = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.ModuleDict({'a': block, 'b': nn.Sequential(block)})
    assert inject_lora(model, rank=2, target='b.0.linear1') == ['a.linear1']


def test_nothing_found():
    with pytest.raises(ForgettingError, match='No transformer feed-forward block') as error:
        inject_lora(nn.Sequential(nn.Linear(9, 8)))
    assert '0' in str(error.value)
    with pytest.raises(ForgettingError, match="'ffn' matches no Linear.*transformer.layers.0"):
        inject_lora(ViT(), target='ffn')
    with pytest.raises(ForgettingError, match=r"outside \('transformer',\).*mlp_head.0"):
        inject_lora(ViT(), exclude=('transformer',))
    with pytest.raises(ForgettingError, match='none'):
        inject_lora(nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize('target', ['(', '*', ['ffn']])
def test_a_target_that_is_no_regex(target):
    with pytest.raises(ForgettingError, match='not a valid regular expression'):
        inject_lora(ViT(), target=target)


def test_out_proj_of_multihead_attention_is_refused():
    model = TorchTransformer()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ForgettingError, match='encoder.layers.0.self_attn.out_proj.*gradient'):
        inject_lora(model, rank=2, target='.*(linear1|out_proj)')
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('other', ['decoder.layers.1.linear1', 'lookup'])
def test_a_weight_that_two_modules_have_in_common_is_refused(other):
    """Both adapters would be merged into the one weight: each would have the other's on top."""
    model = TorchTransformer()
    if other == 'lookup':
        model.lookup = nn.Embedding(16, 8)
    model.get_submodule(other).weight = model.decoder.layers[0].linear1.weight
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ForgettingError, match=r'decoder.layers.\d.linear1.*both'):
        inject_lora(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names
    inject_lora(model, target='decoder.*linear2')  # has a weight of its own


def test_an_error_leaves_the_model_as_it_was():
    model = ViT()
    with pytest.raises(ForgettingError, match='transformer.layers.0.1.fn.fn.net.0: rank 9'):
        inject_lora(model, rank=9)
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())

    narrowing = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 4))
    narrowing[0].bias.requires_grad_(False)
    with pytest.raises(ForgettingError, match='1: rank 8'):
        inject_lora(narrowing, target='.*')
    assert not lora_layers(narrowing)
    assert [p.requires_grad for p in narrowing.parameters()] == [True, False, True, True]


def test_a_second_injection_is_refused():
    model = ViT()
    inject_lora(model, rank=2)
    with pytest.raises(ForgettingError, match='has LoRA already'):
        inject_lora(model, rank=2, target='mlp_head.0')


# ------------------------------------------------------------------- the adapters together


def test_disabled_adapters_come_back():
    plain, x = ViT(), torch.randn(2, 5, 8)
    model = copy.deepcopy(plain)
    names = inject_lora(model, rank=2)
    fill_adapters(model)
    adapted = model(x)
    assert not torch.allclose(adapted, plain(x), atol=1e-3)
    with adapters_disabled(model):
        assert torch.equal(model(x), plain(x))
        with adapters_disabled(model):
            assert torch.equal(model(x), plain(x))
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model(x), adapted)

    lora_layers(model)[names[0]].enabled = False
    with pytest.raises(RuntimeError, match='inside'), adapters_disabled(model):
        raise RuntimeError('inside')
    assert [layer.enabled for layer in lora_layers(model).values()] == [False, True, True, True]


def test_merge_adapters_equals_the_dense_model():
    plain, x = ViT(), torch.randn(2, 5, 8)
    model = copy.deepcopy(plain)
    inject_lora(model, rank=2)
    fill_adapters(model)
    twin, before = dense_twin(plain, model), model(x)
    merge_adapters(model)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-7)
    with adapters_disabled(model):
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)


def test_a_merge_with_one_bad_layer_merges_none():
    model = ViT()
    names = inject_lora(model, rank=2)
    fill_adapters(model)
    with torch.no_grad():
        lora_layers(model)[names[-1]].lora_A[0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ForgettingError, match=f'{names[-1]}: Merging'):
        merge_adapters(model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_reset_adapters_is_reproducible():
    model, x = ViT(), torch.randn(2, 5, 8)
    before = model(x)
    inject_lora(model, rank=2)
    states = []
    for seed in (3, 3, 4):
        fill_adapters(model)
        reset_adapters(model, torch.Generator().manual_seed(seed))
        assert torch.equal(model(x), before)
        states.append(torch.cat([layer.lora_A.flatten() for layer in lora_layers(model).values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_dead_adapter_is_reported():
    class ReadsTheWeight(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(self.called(x), self.read.weight)

    model = ReadsTheWeight()
    inject_lora(model, rank=2, target='.*')
    with pytest.raises(ForgettingError, match='2 of 2'):
        check_live_adapters(model)
    model(torch.randn(3, 4)).sum().backward()
    with pytest.raises(ForgettingError, match='1 of 2 LoRA layers got no gradient: read'):
        check_live_adapters(model)
    group_penalty(discover_groups(model)).backward()
    with pytest.raises(ForgettingError, match='1 of 2 LoRA layers got no gradient: read'):
        check_live_adapters(model)


def test_functions_that_need_adapters_say_so():
    for function in (merge_adapters, reset_adapters, check_live_adapters, discover_groups):
        with pytest.raises(ForgettingError, match='call inject_lora first'):
            function(nn.Linear(2, 2))
    with pytest.raises(ForgettingError, match='call inject_lora'), adapters_disabled(ViT()):
        pass
    assert lora_layers(ViT()) == {}


def test_trainable_share_leaves_the_adapters_out_of_the_total():
    model = nn.Sequential(nn.Linear(4, 3))
    inject_lora(model, rank=2, target='0')
    assert trainable_share(model) == (2 * (4 + 3), 4 * 3 + 3)
    assert trainable_share(nn.Linear(4, 3)) == (15, 15)


def test_an_injected_model_can_be_copied():
    model, x = ViT(), torch.randn(2, 5, 8)
    inject_lora(model, rank=2)
    fill_adapters(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    reset_adapters(twin)
    assert not torch.equal(twin(x), model(x))


def test_xavier_begins_with_the_first_task():
    model = TorchTransformer()
    names = inject_lora(model, rank=2, init='xavier')
    layers = lora_layers(model)
    assert not any(layers[name].lora_B.any() for name in names)
    reset_adapters(model, first=True)
    assert all(layers[name].lora_B.all() for name in names)
    merge_adapters(model)
    reset_adapters(model)  # the second task
    assert not any(layers[name].lora_B.any() for name in names)
