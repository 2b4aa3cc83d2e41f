# gslora_casia100_forget.py with one task, the authors' "100-Y": forget the last Y of their order.
#   python tools/train.py configs/face/gslora_casia100_single_step.py \
#       --cfg-options train_cfg.protocol.sizes=[50]
# Y is 10 unless said; theirs are 5, 10, 50 and 90. Their recipe for it: bound 110, beta 0.05, no
# sparsity in the first 20 epochs and 0.01 from then on:
#   --cfg-options model.method.recipe=paper_face model.method.bound=110 model.method.beta=0.05 \
#       model.method.sparsity.alpha=0.01 model.method.sparsity.warmup_epochs=20
# Awaits a run.
_base_ = './gslora_casia100_forget.py'
train_cfg = dict(protocol=dict(sizes=[10]))
