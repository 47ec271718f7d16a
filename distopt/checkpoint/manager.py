"""A folder of checkpoints of which the latest few are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distopt.checkpoint.objects import SUFFIX, Checkpoint, saved_in
from distopt.errors import CheckpointError


class CheckpointManager:
    """Saves ``checkpoint`` to ``<directory>/<checkpoint_name>-<n>`` and removes all but the latest ``max_to_keep``.

    What lies in the folder under that name is taken for its own, so that a program that is started again goes on where
    it was. With ``step_counter``, a variable, and ``checkpoint_interval`` a :meth:`save` sooner than so many steps
    after the last one does nothing. Under a strategy of several processes each of them makes the same calls.

    Raises: ValueError if ``max_to_keep`` is neither None nor an integer from 1, for ``checkpoint_interval`` without
        ``step_counter``, and for ``keep_checkpoint_every_n_hours``, which is not offered.

    Source: ``tf.train.CheckpointManager``.

    >>> import tempfile
    >>> import numpy as np
    >>> from distopt import Variable
    >>> weight = Variable(np.float32(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manager = CheckpointManager(Checkpoint(weight=weight), folder, max_to_keep=2)
    ...     paths = [manager.save() for _ in range(3)]
    ...     _ = weight.assign(0.0)
    ...     restored = manager.restore_or_initialize() == paths[2]
    ...     manager.checkpoints == paths[1:], restored, float(weight.numpy())
    (True, True, 3.0)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str,
        max_to_keep: int | None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Any = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], Any] | None = None,
    ) -> None:
        if max_to_keep is not None and (not isinstance(max_to_keep, int) or max_to_keep < 1):
            raise ValueError(f"max_to_keep must be an integer from 1, or None to keep all, but is {max_to_keep!r}")
        if keep_checkpoint_every_n_hours is not None:
            raise ValueError("keep_checkpoint_every_n_hours is not offered; leave it out, or keep all with None")
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("checkpoint_interval is counted in steps: it needs step_counter, a variable")
        self._checkpoint = checkpoint
        self._directory = str(directory)
        self._max_to_keep = max_to_keep
        self._name = checkpoint_name
        self._step_counter = step_counter
        self._interval = checkpoint_interval
        self._init_fn = init_fn
        self._last_step: int | None = None
        self._kept = saved_in(self._directory, self._name)

    @property
    def directory(self) -> str:
        """The folder."""
        return self._directory

    @property
    def checkpoint(self) -> Checkpoint:
        """What is saved."""
        return self._checkpoint

    @property
    def checkpoint_interval(self) -> int | None:
        """How many steps lie between two checkpoints at least; None: no matter."""
        return self._interval

    @property
    def checkpoints(self) -> list[str]:
        """The paths of the checkpoints that are kept, the latest one last."""
        return list(self._kept)

    @property
    def latest_checkpoint(self) -> str | None:
        """The path of the latest checkpoint, as :meth:`Checkpoint.restore` takes it; None if there is none."""
        return self._kept[-1] if self._kept else None

    def save(self, checkpoint_number: Any = None, check_interval: bool = True) -> str | None:
        """Save, remove what is too old, and return the path; None within ``checkpoint_interval``.

        ``checkpoint_number``, an integer or a variable, stands in the path; by default the count of checkpoints.
        ``check_interval=False`` saves in any case.

        Raises: CheckpointError if the file cannot be written, or an old one not be removed.
        """
        if self._interval is not None:
            step = int(self._step_counter)
            if check_interval and self._last_step is not None and step - self._last_step < self._interval:
                return None
            self._last_step = step
        number = None if checkpoint_number is None else int(checkpoint_number)
        path = self._checkpoint.save(str(Path(self._directory, self._name)), number=number)
        self._kept = [kept for kept in self._kept if kept != path] + [path]
        self._remove_old()
        return path

    def restore_or_initialize(self) -> str | None:
        """Restore the latest checkpoint and return its path; where there is none, call ``init_fn`` and return None.

        Raises: as :meth:`Checkpoint.restore`.
        """
        latest = self.latest_checkpoint
        if latest is not None:
            self._checkpoint.restore(latest)
            if self._step_counter is not None:
                self._last_step = int(self._step_counter)
        elif self._init_fn is not None:
            self._init_fn()
        return latest

    def _remove_old(self) -> None:
        excess = 0 if self._max_to_keep is None else max(0, len(self._kept) - self._max_to_keep)
        old, self._kept = self._kept[:excess], self._kept[excess:]
        for path in old:
            try:
                Path(path + SUFFIX).unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(f"checkpoint {path}{SUFFIX} cannot be removed: {error}") from error
