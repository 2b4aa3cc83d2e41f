"""The stages of a DETR-like detector."""

from __future__ import annotations

from mmdet.models.layers import DetrTransformerDecoderLayer
from torch import nn

from mmgslora.families.stages import Part

_TRUNK = ('backbone', 'neck')


def detector_stages(detector: nn.Module) -> dict[str, list[Part]]:
    """For :class:`~mmgslora.families.stages.Stages`: trunk, encoder, decoder layers, head.

    What is in none of them, as embeddings of levels and queries, counts to the encoder, which reads
    it, and the head to the first decoder layer, whose boxes go through it.
    """
    staged = {'trunk': [getattr(detector, name) for name in _TRUNK if hasattr(detector, name)]}
    staged['encoder'] = [detector.encoder]
    staged.update({name: list(modules) for name, modules in decoder_stages(detector).items()})
    if not getattr(detector, 'as_two_stage', False):  # it would choose what is decoded, too
        staged['decoder.0'].append(detector.bbox_head)
    parts = {name: [Part(x) for x in modules] for name, modules in staged.items()}
    inside = {x for modules in staged.values() for module in modules for x in module.modules()}
    parts['encoder'] += [Part(x, False) for x in detector.modules() if x not in inside]
    return {**parts, 'head': []}


def decoder_stages(detector: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """The modules of every decoder layer's stages, that which gives a stage's output last.

    The attention is what comes before the feed-forward network; a layer with a forward pass of its
    own, of which that is not known, is one stage.
    """
    stages: dict[str, tuple[nn.Module, ...]] = {}
    for i, layer in enumerate(detector.decoder.layers):
        if type(layer).forward is DetrTransformerDecoderLayer.forward:
            attention = layer.self_attn, layer.norms[0], layer.cross_attn, layer.norms[1]
            stages[f'decoder.{i}.attention'] = attention
        stages[f'decoder.{i}'] = (layer,)
    return stages
