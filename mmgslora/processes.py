"""One of several processes: how it joins the others, and how it ends."""

from __future__ import annotations

import os
import sys

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmgslora.errors import ForgettingError


def join_processes(cfg: Config) -> None:
    """Meet the others that ``launcher='pytorch'`` expects, before MMEngine does.

    Without an accelerator they meet here, by gloo, and the model is wrapped as one on the CPU:
    MMEngine would pick a GPU for each. Does nothing for other launchers.

    Args:
        cfg: The config of the run; gets a ``model_wrapper_cfg`` on the CPU.

    Raises:
        ForgettingError: Nothing has started this process as one of several.
    """
    if cfg.launcher != 'pytorch':
        return
    if 'RANK' not in os.environ:
        raise ForgettingError(
            '--launcher pytorch is for the processes that torchrun starts, and nothing says which '
            'of them this one is (RANK is not set); start them with tools/dist_train.sh CONFIG '
            'GPUS, or leave --launcher out for one process.'
        )
    if get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=True,
    )


def leave_processes() -> None:
    """End this process of several: all are done, nothing is left to be written."""
    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if get_device() == 'cpu':
        # Threads of gloo may outlive the group, and an abort at exit would fail a run that is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
