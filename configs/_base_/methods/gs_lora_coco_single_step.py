# The authors' GS-LoRA for one task on COCO, "80-Y": the beta of their 80-10 script. Their 80-60 and
# 80-70 scripts have 0.2 to 0.4.
_base_ = './gs_lora_coco.py'
paper = dict(method=dict(beta=0.015))
