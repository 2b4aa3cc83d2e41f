from mmgslora.methods.base import METHODS, Context, Method, Task, build_method
from mmgslora.methods.gs_lora import GSLoRA
from mmgslora.methods.gs_lora_pp import GSLoRAPlusPlus
from mmgslora.methods.guided_gs_lora import GuidedGSLoRA
from mmgslora.methods.head_only import HeadOnly
from mmgslora.methods.neg_grad_plus import NegGradPlus
from mmgslora.methods.retain_only import RetainOnly
from mmgslora.methods.salun import SalUn
from mmgslora.methods.scrub import SCRUB
from mmgslora.methods.undo import UNDO

__all__ = [
    'METHODS',
    'SCRUB',
    'UNDO',
    'Context',
    'GSLoRA',
    'GSLoRAPlusPlus',
    'GuidedGSLoRA',
    'HeadOnly',
    'Method',
    'NegGradPlus',
    'RetainOnly',
    'SalUn',
    'Task',
    'build_method',
]
