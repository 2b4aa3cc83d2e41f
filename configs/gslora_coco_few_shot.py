# gslora_coco_forget.py with exactly 32 images of every class per task (another number:
# --cfg-options train_dataloader.dataset.few_shot=4).
#   python tools/train.py configs/gslora_coco_few_shot.py
# COCO is expected under data/coco. Results on real COCO still await a run.
_base_ = './gslora_coco_forget.py'
train_dataloader = dict(dataset=dict(few_shot=32, redraw=True))
