"""What a task changed, as it lies in its folder: of which model, and what it makes of it.

Nothing here needs the model's code. A folder is tensors and JSON, a model is its state dict, so
that reading a file never executes any.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mmgslora.errors import ForgettingError
from mmgslora.lora.adapter import merged_weight
from mmgslora.lora.fingerprint import fingerprint
from mmgslora.lora.folder import CHANGED, CONFIG, METADATA, weights_of

PREFIX = 'base_model.model.'
SEALED = 'sealed'
"""Name of the one buffer that a replaced module may have and the plain model lacks."""

# What PEFT can do and this package cannot, and the values that mean it was not done.
_FOREIGN = {
    'use_dora': (False, None),
    'lora_bias': (False, None),
    'fan_in_fan_out': (False, None),
    'bias': ('none', None),
    'alpha_pattern': ({}, None),
    'layer_replication': (None,),
    'alora_invocation_tokens': (None,),
    'arrow_config': (None,),
    'kasa_config': (None,),
    'monteclora_config': (None,),
    'use_bdlora': (None,),
    'velora_config': (None,),
    # Others, as PiSSA, OLoRA and LoftQ, take from the base weight what the adapter begins with.
    'init_lora_weights': (True, False, None, 'gaussian', 'eva', 'orthogonal', 'mica'),
}


@dataclass(frozen=True)
class StoredAdapter:
    """The content of a task's folder, ours or PEFT's.

    Attributes:
        folder: Where it was read.
        pairs: Layer name -> A (rank, in) and B (out, rank).
        whole: Weights and buffers that were replaced, under their names in the model.
        modules: The names of the modules that were replaced.
        lora_alpha: Numerator of the scale.
        rank_stabilised: Whether the scale is lora_alpha / sqrt(rank) (PEFT's ``use_rslora``).
        metadata: What :func:`mmgslora.lora.save_adapter` wrote beside PEFT's fields; empty for
            an adapter of PEFT.
    """

    folder: Path
    pairs: dict[str, tuple[Tensor, Tensor]]
    whole: dict[str, Tensor]
    modules: tuple[str, ...]
    lora_alpha: float
    rank_stabilised: bool
    metadata: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> StoredAdapter:
        """Read a folder of :func:`~mmgslora.lora.save_adapter`, of a Full tuner or of PEFT.

        Raises:
            ForgettingError: A file is missing, truncated or not what it was when it was written,
                or PEFT did something to the layers that this package does not do.
        """
        folder = Path(folder)
        try:
            path = folder / METADATA
            metadata = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
            weights = weights_of(folder)
            names = (weights,) if weights == CHANGED else (weights, CONFIG)
            files = {name: (folder / name).read_bytes() for name in names}
            tensors, config = load(files[weights]), json.loads(files.get(CONFIG, b'{}'))
            if not isinstance(config, dict) or not isinstance(metadata, dict):
                raise ValueError('one of its JSON files holds no object')
        except (OSError, ValueError, SafetensorError) as error:
            raise ForgettingError(f'{folder} is not a readable adapter folder: {error}') from error
        for name, digest in (metadata.get('files') or {}).items():
            if hashlib.sha256(files.get(name, b'')).hexdigest() != digest:
                raise ForgettingError(
                    f'{name} in {folder} was changed after it was written: its SHA-256 is not the '
                    f'one in {METADATA}.'
                )
        if CHANGED in files:
            return cls(folder, {}, tensors, (), 1.0, False, metadata)
        _check_config(config, folder)
        pairs, whole = _sorted_out(tensors, folder)
        return cls(
            folder=folder,
            pairs=pairs,
            whole=whole,
            modules=tuple(config.get('modules_to_save') or ()),
            lora_alpha=config['lora_alpha'],
            rank_stabilised=bool(config.get('use_rslora')),
            metadata=metadata,
        )

    def scale(self, layer: str) -> float:
        """What B A of a layer is multiplied by."""
        rank = len(self.pairs[layer][0])
        return self.lora_alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def changes(self, state: Mapping[str, Tensor]) -> set[str]:
        """Names of all weights and buffers of a model that a merge changes."""
        keys = [*(_weight_key(name, state) for name in self.pairs), *self.whole]
        return set(self._with_aliases(dict.fromkeys(keys)))

    def check_base(self, state: Mapping[str, Tensor]) -> None:
        """Check that a model is the one that the adapter was trained on.

        An adapter of PEFT does not say, and fits any model with its layers.

        Args:
            state: State dict of the plain model.

        Raises:
            ForgettingError: It is another one, or the adapter was merged into it already.
        """
        base, result = self.metadata.get('base'), self.metadata.get('result')
        if base is None:
            return
        found = fingerprint(state)
        if found == base:
            return
        if found == result:
            raise ForgettingError(
                f'The adapter in {self.folder} is merged into this model already; merging it twice '
                'would double what it does.'
            )
        raise ForgettingError(
            f'The adapter in {self.folder} belongs to another model: it was trained on the weights '
            f'with fingerprint {base[:12]}..., and these have {found[:12]}....'
        )

    def merged(self, state: Mapping[str, Tensor], own_base: bool = True) -> dict[str, Tensor]:
        """The state dict with the adapter merged in; the given one is left as it is.

        Args:
            state: State dict of the plain model.
            own_base: Whether the model must be the one that the adapter was trained on, and
                the sum the one that was written down. False where a request before this one was
                taken back. Defaults to True.

        Raises:
            ForgettingError: The model is another one, was merged already, or lacks a layer; a
                shape does not fit; the sum holds NaN or infinity, or is not what it must be.
        """
        self._check_fit(state)
        if own_base:
            self.check_base(state)
        new = dict(self.whole)
        for name, (lora_a, lora_b) in self.pairs.items():
            key = _weight_key(name, state)
            weight = new.get(key, state[key])
            pair = lora_a.to(weight.device), lora_b.to(weight.device)
            try:
                new[key] = merged_weight(weight, *pair, self.scale(name))
            except ForgettingError as error:
                raise ForgettingError(f'{name}: {error}') from error
        merged = {**state, **self._with_aliases(new)}
        result = self.metadata.get('result')
        if own_base and result is not None and fingerprint(merged) != result:
            raise ForgettingError(
                f'The adapter in {self.folder} makes another model of its base than the one it was '
                f'written for: {METADATA} was changed.'
            )
        return merged

    def _with_aliases(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values under all names that their weights have in a model that shares modules."""
        also = self.metadata.get('also_named') or {}
        return {name: v for key, v in values.items() for name in (key, *also.get(key, ()))}

    def _check_fit(self, state: Mapping[str, Tensor]) -> None:
        wanted = {
            _weight_key(name, state): (len(b), a.shape[1]) for name, (a, b) in self.pairs.items()
        }
        for key, value in self.whole.items():
            if key in state or key.rpartition('.')[2] != SEALED:
                wanted[key] = tuple(value.shape)
        for key, shape in wanted.items():
            if key not in state:
                raise ForgettingError(
                    f'The adapter in {self.folder} is of {key!r}, which the model lacks.'
                )
            if tuple(state[key].shape) != shape:
                raise ForgettingError(
                    f'{key!r} is {shape} in the adapter in {self.folder} and '
                    f'{tuple(state[key].shape)} in the model.'
                )


def _weight_key(layer: str, state: Mapping[str, Tensor]) -> str:
    """Name of the weight that a layer's adapter changes."""
    packed = f'{layer}.in_proj_weight'  # of an nn.MultiheadAttention
    return packed if packed in state else f'{layer}.weight'


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    if config.get('peft_type') != 'LORA':
        raise ForgettingError(
            f'{folder} holds an adapter of type {config.get("peft_type")!r}; it must be LORA.'
        )
    alpha = config.get('lora_alpha')
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ForgettingError(f'lora_alpha is {alpha!r} in {folder}; it must be a number above 0.')
    for key, harmless in _FOREIGN.items():
        if config.get(key) not in harmless:
            raise ForgettingError(
                f'{key} is {config[key]!r} in {folder}; adapters of PEFT are read without it only.'
            )


def _sorted_out(
    tensors: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The pairs of matrices by layer, and everything else."""
    halves: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for key, value in sorted(tensors.items()):  # safetensors gives them in any order
        if not key.startswith(PREFIX):
            raise ForgettingError(
                f'{key!r} in {folder} is no name that PEFT gives; it must start with {PREFIX!r}.'
            )
        if '.base_layer.' in key:
            raise ForgettingError(
                f'{key!r} in {folder} is of an nn.MultiheadAttention, whose out_proj PEFT counts '
                'twice; adapters of PEFT are read on Linears only.'
            )
        plain = key.removeprefix(PREFIX)
        name, found, matrix = plain.rpartition('.lora_')
        if found and matrix in ('A.weight', 'B.weight'):
            halves.setdefault(name, {})[matrix[0]] = value
        else:
            whole[plain] = value
    for name, pair in halves.items():
        if len(pair) < 2:
            raise ForgettingError(
                f'The adapter in {folder} has lora_{min(pair)} of {name!r} and not the other half.'
            )
        if pair['A'].dim() != 2 or pair['B'].dim() != 2 or len(pair['A']) != pair['B'].shape[1]:
            raise ForgettingError(
                f'The matrices of {name!r} in {folder} are {tuple(pair["A"].shape)} and '
                f'{tuple(pair["B"].shape)}; they must be (rank, in) and (out, rank).'
            )
    return {name: (pair['A'], pair['B']) for name, pair in halves.items()}, whole


def norms(pair: tuple[Tensor, Tensor], scale: float) -> tuple[float, float]:
    """Frobenius norms of B, which group sparsity shrinks, and of s B A, which is what is added."""
    lora_a, lora_b = (matrix.double() for matrix in pair)
    return float(torch.linalg.norm(lora_b)), float(scale * torch.linalg.norm(lora_b @ lora_a))
