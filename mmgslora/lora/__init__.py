"""LoRA in plain PyTorch: the layer, injection, groups and adapter files."""

from mmgslora.lora.adapter import Adapter, is_of_adapter
from mmgslora.lora.adapter_file import apply_adapter, load_adapter, save_adapter
from mmgslora.lora.attention import LoRAMultiheadAttention
from mmgslora.lora.fingerprint import fingerprint
from mmgslora.lora.groups import LoRAGroup, discover_groups
from mmgslora.lora.inject import (
    adapters_disabled,
    check_live_adapters,
    find_blocks,
    inject_lora,
    lora_layers,
    merge_adapters,
    reset_adapters,
    trainable_share,
)
from mmgslora.lora.layer import LoRALinear

__all__ = [
    'Adapter',
    'LoRAGroup',
    'LoRALinear',
    'LoRAMultiheadAttention',
    'adapters_disabled',
    'apply_adapter',
    'check_live_adapters',
    'discover_groups',
    'find_blocks',
    'fingerprint',
    'inject_lora',
    'is_of_adapter',
    'load_adapter',
    'lora_layers',
    'merge_adapters',
    'reset_adapters',
    'save_adapter',
    'trainable_share',
]
