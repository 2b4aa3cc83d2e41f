# The authors' GS-LoRA++ for one task on faces with two images of each.
_base_ = './gs_lora_pp_face_single_step.py'
paper = dict(method=dict(beta=0.15, prototype_weight=0.5))
