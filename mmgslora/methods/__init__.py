from mmgslora.methods.base import Method
from mmgslora.methods.gs_lora import GSLoRA
from mmgslora.methods.gs_lora_pp import GSLoRAPlusPlus

__all__ = ['GSLoRA', 'GSLoRAPlusPlus', 'Method']
