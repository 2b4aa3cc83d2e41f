# GS-LoRA++ on four images per class: gslora_shapes_few_shot.py with prototypes.
#   python tools/train.py configs/gslora_pp_shapes_few_shot.py
_base_ = './gslora_shapes_few_shot.py'
model = dict(method=dict(_delete_=True, type='GSLoRAPlusPlus'))
