"""A model of two blocks for the tests of the methods."""

import torch

from mmgslora.lora import inject_lora


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(4, 2)
        self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)


def two_blocks() -> torch.nn.Module:
    model = torch.nn.Sequential(Block(), Block())
    inject_lora(model, rank=2)
    return model
