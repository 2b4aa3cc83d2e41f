from mmgslora.methods.base import Method
from mmgslora.methods.gs_lora import GSLoRA

__all__ = ['GSLoRA', 'Method']
