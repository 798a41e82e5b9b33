"""Numbers that are not finite."""

from resnext_jax.errors import UserError


def not_finite(what: str, step: int, workdir: str) -> UserError:
    """The instruction for a run that has diverged."""
    return UserError(
        f"the {what} is not finite at step {step}: the run has diverged, and stops. What was saved in "
        f"{workdir}/checkpoints before is untouched. Lower learning_rate, lengthen schedule.warmup_epochs or compute "
        "in float32; in another --workdir, if the run shall start anew."
    )
