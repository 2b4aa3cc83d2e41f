"""What a request may change: LoRA adapters, or parameters themselves."""

from mmgslora.tuning.base import TUNERS, Tuner, build_tuner
from mmgslora.tuning.full import Full
from mmgslora.tuning.lora import LoRA

__all__ = ['TUNERS', 'Full', 'LoRA', 'Tuner', 'build_tuner']
