# The journal script for detection: GS-LoRA++ with the rows of the class head as prototypes, 32
# images per class, the authors' beta for each of seven tasks. (They draw 32 times the number of
# classes from all images; here it is 32 of each class.)
#   python tools/train.py configs/gslora_pp_coco_few_shot_paper.py
# COCO is expected under data/coco. Results on real COCO still await a run.
_base_ = './gslora_coco_forget_paper.py'
model = dict(
    method=dict(
        type='GSLoRAPlusPlus',
        recipe='paper',
        beta=(0.15, 0.15, 0.35, 0.6, 0.15, 0.2, 0.2),
    )
)
train_dataloader = dict(batch_size=8, dataset=dict(few_shot=32))
auto_scale_lr = dict(base_batch_size=64)
