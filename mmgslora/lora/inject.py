"""Put LoRA into a model in place, and handle the adapters of a model together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import Adapter, is_of_adapter
from mmgslora.lora.attention import LoRAMultiheadAttention, check_attention
from mmgslora.lora.layer import LoRALinear

_ATTENTION_NAME = re.compile(r'(?i:attention|attn)|MSA$')


def find_blocks(model: nn.Module) -> list[str]:
    """Find the transformer blocks of a model by their structure.

    A block is an innermost module that holds an attention module and, outside attention, a
    feed-forward pair: two Linears in a row, d -> h and h -> d. Attention is recognised by its
    type (``nn.MultiheadAttention``) or by a class name with "attention", "attn" or a final
    "MSA". Ours; the reference code lists the modules of each model by hand.

    Args:
        model: Any module, with or without adapters.

    Returns:
        list[str]: Module names in model order, each block once; ``''`` is the model itself.
    """
    return [name for name, _, _ in _blocks(model)]


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module, list[nn.Linear]]]:
    """Name, module and feed-forward Linears of every block."""
    unique = {}
    for name, block, linears in _scan('', model)[0]:
        unique.setdefault(block, (name, block, linears))
    return list(unique.values())


def _attention_layers(block: nn.Module, feed_forward: list[nn.Linear]) -> list[nn.Module]:
    """What of a block's attention can carry LoRA: Linears, and packed projections."""
    found: list[nn.Module] = []
    for module in block.modules():
        named = module is not block and _ATTENTION_NAME.search(type(module).__name__)
        if isinstance(module, nn.MultiheadAttention):
            found.append(module)
        elif named:
            found += [x for x in module.modules() if isinstance(x, nn.Linear)]
    unread = {x.out_proj for x in found if isinstance(x, nn.MultiheadAttention)}
    return [x for x in dict.fromkeys(found) if x not in unread and x not in feed_forward]


def _scan(name: str, module: nn.Module) -> tuple[list, list[nn.Linear], bool]:
    """Blocks in the module, its Linears outside attention, and whether it holds attention."""
    if isinstance(module, nn.MultiheadAttention):
        return [], [], True
    if isinstance(module, nn.Linear):
        return [], [module], False

    blocks, linears, holds_attention = [], [], False
    for child_name, child in module.named_children():
        path = f'{name}.{child_name}' if name else child_name
        child_blocks, child_linears, child_holds_attention = _scan(path, child)
        blocks += child_blocks
        linears += child_linears
        holds_attention |= child_holds_attention
    if blocks:
        return blocks, [], True

    is_named_attention = _ATTENTION_NAME.search(type(module).__name__) is not None
    pairs = _feed_forward_pairs(linears)
    # Around an inner attention, an attention class has square projections only; with a pair
    # that widens it is a block whatever its name (CLIP's ResidualAttentionBlock).
    widens = any(linear.in_features != linear.out_features for linear in pairs)
    if holds_attention and pairs and (widens or not is_named_attention):
        return [(name, module, pairs)], [], True
    if is_named_attention:
        return [], [], True
    return [], linears, holds_attention


def _feed_forward_pairs(linears: list[nn.Linear]) -> list[nn.Linear]:
    """Both Linears of each pair d -> h, h -> d; pairs with h = d only where no other exists."""
    pairs, index = [], 0
    while index + 1 < len(linears):
        first, second = linears[index : index + 2]
        if (first.in_features, first.out_features) == (second.out_features, second.in_features):
            pairs += [first, second]
            index += 1
        index += 1
    widening = [linear for linear in pairs if linear.in_features != linear.out_features]
    return widening or pairs


def inject_lora(
    model: nn.Module,
    rank: int = 8,
    lora_alpha: float = 1.0,
    target: str | None = None,
    exclude: Sequence[str] = (),
    init: str = 'kaiming',
    layers: str = 'ffn',
) -> list[str]:
    """Replace Linears of a model by :class:`LoRALinear`, in place, and freeze the rest.

    An ``nn.MultiheadAttention`` becomes a :class:`LoRAMultiheadAttention`.

    Afterwards only ``lora_A`` and ``lora_B`` require a gradient. Load or initialise the
    weights before: what initialises every matrix of a model would fill ``lora_B`` too.

    Args:
        model: The model to change.
        rank: Rank of every adapter. Defaults to 8.
        lora_alpha: Numerator of the scale lora_alpha / rank. Defaults to 1.
        target: A regular expression takes the Linears, and the ``nn.MultiheadAttention``, whose
            whole name it matches. Defaults to None: ``layers`` decides.
        exclude: Module names; nothing in these modules is taken, e.g.
            ``('backbone', 'neck')``. Defaults to ().
        init: How the adapter of the first task starts, 'kaiming' or 'xavier' (see
            :meth:`LoRALinear.reset`); the model is unchanged until :func:`reset_adapters` begins
            that task. Defaults to 'kaiming'.
        layers: 'ffn' takes both Linears of every feed-forward pair of every transformer block,
            the position of the GS-LoRA paper; 'attention' the projections of its attention:
            Linears, or the packed matrix of an ``nn.MultiheadAttention``; 'all' both. Defaults to
            'ffn'.

    Returns:
        list[str]: Names of the new layers in model order. A Linear that stands under
        several names is replaced under all of them and listed once.

    Raises:
        ForgettingError: If nothing matches, ``target`` is not a valid regular expression, a
            matched layer can never get a gradient or has its weight in common with another
            module, the model has adapters already, or ``rank``, ``lora_alpha`` or ``init`` is
            not possible. The model is unchanged then.
    """
    existing = list(lora_layers(model))
    if existing:
        raise ForgettingError(
            f'The model has LoRA already, the first at {existing[0]!r}; merge or reset its '
            'adapters, or inject into a fresh model.'
        )
    matched = _match(model, target, exclude, layers)
    for linear, name in matched.items():
        if isinstance(linear, NonDynamicallyQuantizableLinear):
            raise ForgettingError(
                f'LoRA in {name!r} would never get a gradient: nn.MultiheadAttention reads the '
                'weight of its out_proj and does not call the layer; choose other Linears.'
            )
    _refuse_common_weights(model, matched)
    new_layers = _built(model, matched, rank, lora_alpha, init)
    for layer in matched:
        if isinstance(layer, nn.MultiheadAttention):
            LoRAMultiheadAttention.from_attention(layer, rank, lora_alpha, init)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_of_adapter(name))
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child in new_layers:
                setattr(parent, child_name, new_layers[child])
    _leave_fast_path(model)
    return list(lora_layers(model))


def _built(
    model: nn.Module, matched: dict[nn.Module, str], rank: int, lora_alpha: float, init: str
) -> dict[nn.Module, LoRALinear]:
    """The new layer of every Linear, none put in yet: an error leaves the model as it was."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    new_layers = {}
    for layer, name in matched.items():
        try:
            if isinstance(layer, nn.Linear):
                new_layers[layer] = LoRALinear.from_linear(layer, rank, lora_alpha, init)
            else:
                check_attention(layer, rank, lora_alpha, init)
        except ForgettingError as error:
            for parameter, requires_grad in before.items():
                parameter.requires_grad_(requires_grad)
            raise ForgettingError(f'{name}: {error}') from error
    return new_layers


def _match(
    model: nn.Module, target: str | None, exclude: Sequence[str], layers: str
) -> dict[nn.Module, str]:
    """The layers to change, each with its first name."""
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if layers not in ('ffn', 'attention', 'all'):
        raise ForgettingError(f'layers is {layers!r}; it can be ffn, attention or all.')
    named = dict(model.named_modules(remove_duplicate=False))
    for name in exclude:
        if name not in named:
            raise ForgettingError(
                f'exclude has {name!r}, and this {type(model).__name__} has no such part; its '
                f'parts are {", ".join(name for name, _ in model.named_children())}.'
            )
    excluded = tuple(f'{name}.' for name in exclude)
    linears = {
        name: module
        for name, module in named.items()
        if isinstance(module, (nn.Linear, nn.MultiheadAttention))
        and name
        and not f'{name}.'.startswith(excluded)
    }
    if target is None:
        wanted: set[nn.Module] = set()
        for _, block, pair in _blocks(model):
            wanted.update(pair if layers != 'attention' else ())
            wanted.update(_attention_layers(block, pair) if layers != 'ffn' else ())
        wanted_names = [name for name, linear in linears.items() if linear in wanted]
        nothing = 'No transformer feed-forward block was found'
    else:
        try:
            pattern = re.compile(target)
        except (re.error, TypeError) as error:
            raise ForgettingError(
                f'LoRA target {target!r} is not a valid regular expression: {error}.'
            ) from error
        wanted_names = [name for name in linears if pattern.fullmatch(name)]
        nothing = f'LoRA target {target!r} matches no Linear'
    if not wanted_names:
        outside = f' outside {exclude}' if exclude else ''
        raise ForgettingError(
            f'{nothing} in this {type(model).__name__}{outside}; its Linears there: '
            f"{_some(list(linears))}; name Linears in tune.target, or take tune.type='Full', which "
            'trains parameters themselves.'
        )
    matched = {}
    for name in wanted_names:
        matched.setdefault(linears[name], name)
    return matched


def _refuse_common_weights(model: nn.Module, matched: dict[nn.Module, str]) -> None:
    """See that no other module has the weight of a matched one, which a merge would change too."""
    owner = {_weight(layer): (layer, name) for layer, name in matched.items()}
    for other, module in model.named_modules():
        for weight in module._parameters.values():
            layer, name = owner.get(weight, (module, ''))
            if weight is not None and layer is not module:
                raise ForgettingError(
                    f'The weight of {name!r} is that of {other!r} as well, so merging an adapter '
                    'of the one would change both; name other Linears in tune.target, or take '
                    "tune.type='Full'."
                )


def _weight(layer: nn.Module) -> nn.Parameter | None:
    """What an adapter on the layer changes; None where it is computed, or there are several."""
    name = 'weight' if isinstance(layer, nn.Linear) else 'in_proj_weight'
    return layer._parameters.get(name)


def _some(names: list[str]) -> str:
    """A few of the names, spread over the model, and how many there are."""
    if not names:
        return 'none'
    shown = names[:: max(1, len(names) // 5)][:5]
    return ', '.join(shown) + (f' ({len(names)} in all)' if len(names) > len(shown) else '')


def _leave_fast_path(model: nn.Module) -> None:
    # PyTorch's fused evaluation path reads the weights of linear1 and linear2 and would drop
    # the adapters silently. These switches send the modules down their ordinary path.
    for module in model.modules():
        if not isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            continue
        if not lora_layers(module):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        else:
            module.use_nested_tensor = False


def lora_layers(model: nn.Module) -> dict[str, Adapter]:
    """Return the layers of a model that carry an adapter by name, in model order, each once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Adapter)}


def require_lora_layers(model: nn.Module) -> dict[str, Adapter]:
    """Like :func:`lora_layers`, for a model that must have some.

    Raises:
        ForgettingError: If there is none.
    """
    layers = lora_layers(model)
    if not layers:
        raise ForgettingError(
            f'This {type(model).__name__} has no LoRA layers; call inject_lora first.'
        )
    return layers


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Run the model without its adapters: as it was at the start of the task, the teacher.

    The state from before comes back at the end, after an exception too; uses can be nested.

    Raises:
        ForgettingError: If the model has no LoRA layers.
    """
    before = [(layer, layer.enabled) for layer in require_lora_layers(model).values()]
    for layer, _ in before:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in before:
            layer.enabled = enabled


def merge_adapters(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Merge every adapter into its weight and start fresh ones.

    Args:
        model: A model with LoRA layers.
        generator: Source of the fresh ``A``. Defaults to PyTorch's global CPU one.

    Raises:
        ForgettingError: If the model has no LoRA layers, or a merged weight would hold NaN
            or infinity; no layer is changed then.
    """
    layers = require_lora_layers(model)
    for name, layer in layers.items():
        try:
            layer.merged_weight()
        except ForgettingError as error:
            raise ForgettingError(f'{name}: {error}') from error
    for layer in layers.values():
        layer.merge(generator)


def reset_adapters(
    model: nn.Module, generator: torch.Generator | None = None, first: bool = False
) -> None:
    """Throw every adapter away and start fresh ones: ``B`` zero, ``A`` drawn anew.

    Args:
        model: A model with LoRA layers.
        generator: Source of the fresh ``A``. Defaults to PyTorch's global CPU one.
        first: Whether these are the adapters of the first task, see :meth:`LoRALinear.reset`.
            Defaults to False.

    Raises:
        ForgettingError: If the model has no LoRA layers.
    """
    for layer in require_lora_layers(model).values():
        layer.reset(generator, first)


def check_live_adapters(model: nn.Module) -> None:
    """Check, after the first backward pass, that every adapter got a gradient.

    An adapter is dead where the forward pass reads the weight of a Linear instead of calling
    it, or does not pass through the layer at all. Beside live ones it goes unnoticed. A penalty
    gives it a gradient all the same, so that it must have been called, too.

    Raises:
        ForgettingError: If a layer that is not held was not called or its ``lora_B`` has no
            gradient, or the model has no LoRA layers.
    """
    layers = require_lora_layers(model)
    dead = [
        name
        for name, layer in layers.items()
        if layer.learns and not (layer.called and layer.lora_B.grad is not None)
    ]
    if dead:
        raise ForgettingError(
            f'{len(dead)} of {len(layers)} LoRA layers got no gradient: {_some(dead)}; the '
            'forward pass does not call them, so choose a target or exclude without them.'
        )


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """Count the parameters that train, and those of the model without its adapters.

    This is how the GS-LoRA papers count: 245,760 of 19,157,504 for the face ViT, where the
    total leaves the adapters out.

    Returns:
        tuple[int, int]: (trainable, total).
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(m.lora_A.numel() + m.lora_B.numel() for m in lora_layers(model).values())
    return trainable, sum(p.numel() for p in model.parameters()) - adapters
