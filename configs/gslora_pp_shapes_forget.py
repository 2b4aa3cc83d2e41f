# GS-LoRA++ on the generated shapes: gslora_shapes_forget.py with prototypes.
#   python tools/train.py configs/gslora_pp_shapes_forget.py
_base_ = './gslora_shapes_forget.py'
model = dict(method=dict(_delete_=True, type='GSLoRAPlusPlus'))
