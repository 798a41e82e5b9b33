"""The interface between the loop and what it trains."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, runtime_checkable

from resnext_jax.train.step import Step
from resnext_jax.types import Metric, PyTree, TrainState


@runtime_checkable  # so that tests can check annotations
class Task(Protocol):
    """One thing that can be trained, such as `train.classification.Classification`.

    The loop, checkpoints, resuming, metrics, curves and the summary know nothing else of it.

    Attributes:
      model_name: name of the network.
      title: one line for people: network and data.
      dataset: JSON facts of the data, stored in every checkpoint. If `num_images` is there, it must not change.
      batch_size: images of one step.
      total_steps: steps of the whole run.
      steps_per_epoch: may be fractional.
      length_may_change: whether a restart may change the number of steps, because the learning rate of a step does not
        depend on it.
      metrics: metrics of evaluations, in the order in which the summary shows them.
      train_metrics: metrics of rows of training that the progress line shows.
      score: the metric that ranks checkpoints; larger is better.
      train_step: (state, batch) -> (state, sums), jitted; donates the state. Batches may have several shapes. The sums
        are a `metrics.Sums` or a dataclass like it, with `loss` and `images`.
      plain_step: the same without jit and devices, to look for a NaN in it.
      final_phase: phase of one more row after the last step; None if there is none.
    """

    model_name: str
    title: str
    dataset: dict[str, Any]
    batch_size: int
    total_steps: int
    steps_per_epoch: float
    length_may_change: bool
    metrics: Sequence[Metric]
    train_metrics: Sequence[Metric]
    score: Metric
    train_step: Any
    plain_step: Step

    @property
    def final_phase(self) -> str | None: ...

    def flops_per_image(self) -> float:
        """Return the floating-point operations of training on one image."""
        ...

    def state_shapes(self) -> TrainState:
        """Return the state as shapes with shardings, to restore a checkpoint into."""
        ...

    def initial_state(self, log: Callable[[str], None]) -> TrainState:
        """Return the state at step 0."""
        ...

    def require_same_data(self, saved: dict[str, Any], workdir: str) -> None:
        """Raise UserError if a checkpoint with these `dataset` facts cannot go on with the current data."""
        ...

    def batches(self, start_step: int) -> Generator[PyTree]:
        """Yield this process's rows of the global batches from `start_step` to the end of the run."""
        ...

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` updates."""
        ...

    def evaluate(self, variables: PyTree, step: int, workdir: str) -> dict[str, float]:
        """Return all `metrics` of an evaluation, the score among them, and the number of `images`.

        Args:
          variables: `params` and `batch_stats`.
          step: step that they belong to.
          workdir: directory of the run, for what a task writes besides the row.
        """
        ...

    def final_evaluation(
        self, variables: PyTree, step: int, description: dict[str, Any], workdir: str
    ) -> dict[str, float]:
        """Return the row of `final_phase`; called once, after the last step."""
        ...
