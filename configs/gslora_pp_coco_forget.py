# GS-LoRA++ on COCO 2017: gslora_coco_forget.py with prototypes, our default recipe.
#   python tools/train.py configs/gslora_pp_coco_forget.py
# COCO is expected under data/coco. Results on real COCO still await a run.
_base_ = './gslora_coco_forget.py'
model = dict(method=dict(_delete_=True, type='GSLoRAPlusPlus'))
