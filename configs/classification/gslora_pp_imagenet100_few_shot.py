# gslora_imagenet100_forget.py with the authors' GS-LoRA++ and four images of every class, in
# batches of four and four. Not a run of theirs, whose scripts have no few-shot one for ImageNet100:
# the weights are those of their full run.
#   python tools/train.py configs/classification/gslora_pp_imagenet100_few_shot.py
# Awaits a run.
_base_ = ['./gslora_imagenet100_forget.py', '../_base_/methods/gs_lora_pp_imagenet100.py']
model = dict(method=dict(_delete_=True, **_base_.paper.method))
train_dataloader = dict(batch_size=8, dataset=dict(few_shot=4))
