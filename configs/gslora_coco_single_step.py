# gslora_coco_forget.py with one task, the authors' "80-Y": forget the last Y of their order.
#   python tools/train.py configs/gslora_coco_single_step.py \
#       --cfg-options train_cfg.protocol.sizes=[30] train_cfg.steps_per_task=1296
# Y is 10 unless said; theirs are 1, 5, 10, 20, 30, 40, 50, 60 and 70. By the rules of
# docs/your_data.md another Y has other steps, and one up to 5 model.method.distill_weight=10. The
# authors' method: gslora_coco_single_step_paper.py.
# COCO is expected under data/coco. Results on real COCO still await a run.
_base_ = './gslora_coco_forget.py'
train_cfg = dict(protocol=dict(sizes=[10]))
