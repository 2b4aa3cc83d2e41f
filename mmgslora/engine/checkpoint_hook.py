"""MMEngine's checkpoints, safe against a kill at any moment."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.registry import HOOKS

from mmgslora.atomic import naming, write_text
from mmgslora.preflight.resume import checkpoints_in
from mmgslora.preflight.work_dir import release


# In MMEngine's place, so that every config has it: those of MMDetection name it CheckpointHook.
@HOOKS.register_module(name='CheckpointHook', force=True)
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's hook, which deletes the old checkpoint only when the new one is whole.

    MMEngine deletes first and then writes under the final name: with ``max_keep_ckpts=1`` a kill
    in between leaves nothing to resume. Here a checkpoint is written beside, renamed, noted in
    ``last_checkpoint``, and only then the surplus ones go. A resumed run takes the latest
    checkpoint of its own work_dir, where ``last_checkpoint`` names another folder (a copy) too. At
    its end it lets go of the work_dir (:func:`~mmgslora.preflight.work_dir.release`).

    Args:
        **kwargs: As for MMEngine's CheckpointHook.
    """

    def before_run(self, runner) -> None:
        super().before_run(runner)
        if runner._resume and runner._load_from is None:
            runner._load_from = next(map(str, checkpoints_in(runner.work_dir)), None)

    def after_run(self, runner) -> None:
        super().after_run(runner)
        if is_main_process():
            release(Path(runner.work_dir))

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        folder = Path(self.out_dir)
        if '://' in str(self.out_dir):  # a remote store puts whole objects
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        surplus = self._surplus(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(getattr(self, 'keep_ckpt_ids', [])))
        path = folder / self.filename_tmpl.format(step)
        self.last_ckpt = str(path)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        draft = folder / f'.{path.name}'
        try:
            runner.save_checkpoint(
                str(folder),
                draft.name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if not is_main_process():
                return
            draft.replace(path)
        except OSError as error:  # a full disk, say: what was written of it is no use to anyone
            draft.unlink(missing_ok=True)
            raise naming(path, error) from None
        write_text(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        for old in surplus:
            (folder / self.filename_tmpl.format(old)).unlink(missing_ok=True)

    def _surplus(self, step: int) -> list[int]:
        """Count a new checkpoint among those that are kept; the ones that are too many now."""
        if self.max_keep_ckpts <= 0:
            return []
        kept = [s for s in self.keep_ckpt_ids if s != step] + [step]
        self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts :], self.max_keep_ckpts)
        return kept[: -self.max_keep_ckpts]
