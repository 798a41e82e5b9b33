"""After which steps a run logs, saves, evaluates, and keeps a checkpoint."""

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Decides what follows a step.

    Attributes:
      total_steps: steps of the whole run.
      steps_per_epoch: rarely a whole number.
      log_every_steps: period of the rows of training.
      save_every_steps: period of the checkpoints.
      evaluate_every_steps: period of the evaluations; None for the end of every epoch.
      keep_every_steps, keep_every_epochs: periods of the checkpoints that are kept permanently; None for none.
    """

    total_steps: int
    steps_per_epoch: float
    log_every_steps: int
    save_every_steps: int
    evaluate_every_steps: int | None = None
    keep_every_steps: int | None = None
    keep_every_epochs: int | None = None

    def logs(self, step: int) -> bool:
        return step % self.log_every_steps == 0 or self.saves(step)

    def saves(self, step: int) -> bool:
        return step % self.save_every_steps == 0 or self.evaluates(step) or self.keeps(step)

    def evaluates(self, step: int) -> bool:
        if self.evaluate_every_steps is not None:
            due = step % self.evaluate_every_steps == 0
        else:
            due = self._ends_epochs(step, 1)
        return due or step == self.total_steps

    def keeps(self, step: int) -> bool:
        """Return whether the checkpoint of this step is never removed."""
        by_steps = self.keep_every_steps is not None and step % self.keep_every_steps == 0
        return by_steps or (self.keep_every_epochs is not None and self._ends_epochs(step, self.keep_every_epochs))

    def _ends_epochs(self, step: int, num_epochs: int) -> bool:
        """Return whether this is the last step of `num_epochs` epochs or of a multiple of them."""
        steps = num_epochs * self.steps_per_epoch
        return step == round(max(1, round(step / steps)) * steps)


def cadence_of(config: ConfigDict, total_steps: int, steps_per_epoch: float) -> Cadence:
    """Return the cadence that a config describes."""
    return Cadence(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        log_every_steps=config.log.every_steps,
        save_every_steps=config.checkpoint.every_steps,
        evaluate_every_steps=config.evaluate.every_steps,
        keep_every_steps=config.checkpoint.keep_every_steps,
        keep_every_epochs=config.checkpoint.keep_every_epochs,
    )
