from mmgslora.methods.base import METHODS, Context, Method, Task, build_method
from mmgslora.methods.gs_lora import GSLoRA
from mmgslora.methods.gs_lora_pp import GSLoRAPlusPlus
from mmgslora.methods.guided_gs_lora import GuidedGSLoRA
from mmgslora.methods.retain_only import RetainOnly

__all__ = [
    'METHODS',
    'Context',
    'GSLoRA',
    'GSLoRAPlusPlus',
    'GuidedGSLoRA',
    'Method',
    'RetainOnly',
    'Task',
    'build_method',
]
