"""Traces of a few steps for XProf and TensorBoard, at steps that the config names or on request."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from etils import epath

from resnext_jax.files import cannot_write, write_whole

REQUEST_FILE = "profile"  # in the workdir: touch it
REQUESTED_STEPS = 10


class Profiler:
    """Writes what the first process and its devices do to `workdir/tensorboard/plugins/profile/TIME`.

    Args:
      steps: first and last step to trace; empty for none.
      active: False in all but the primary process.
    """

    def __init__(self, workdir: str, steps: Sequence[float], active: bool, say: Callable[[str], None]):
        self._workdir, self._active, self._say = epath.Path(workdir), active, say
        self._first, self._last = (int(steps[0]), int(steps[1])) if steps else (0, 0)
        self._directory: str | None = None  # while tracing

    def look(self, step: int) -> None:
        """For a request, after `step`; the steps after it are traced."""
        if self._active and self._directory is None and (self._workdir / REQUEST_FILE).exists():
            (self._workdir / REQUEST_FILE).unlink()
            self._first, self._last = step + 1, step + REQUESTED_STEPS

    def switches(self, step: int) -> bool:
        """Whether `switch` is due before this step; wait for those before it."""
        return self._active and (self._first <= step <= self._last) != (self._directory is not None)

    def switch(self) -> None:
        """Begins a trace, or ends it and writes it.

        Raises:
          UserError: it could not be written.
        """
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="resnext_jax_profile_")
            jax.profiler.start_trace(self._directory)
            return
        jax.profiler.stop_trace()
        directory, self._directory = self._directory, None
        # The profiler writes to local disks alone; a workdir may be a bucket.
        for path in sorted(Path(directory).rglob("*")):
            target = self._workdir / "tensorboard" / path.relative_to(directory)
            if path.is_file():
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise cannot_write(target, error) from error
                write_whole(target, path.read_bytes())
        shutil.rmtree(directory)
        self._say(f"profile written to {self._workdir / 'tensorboard' / 'plugins' / 'profile'}")

    def close(self) -> None:
        """Ends a trace that is not ended."""
        if self._directory is not None:
            self.switch()
