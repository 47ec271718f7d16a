"""Saving and restoring objects by name: variables, optimizers, models, and structures of them.

Theory of operation. Every value has a key that says how it is reached from the checkpoint, as in TensorFlow:
``var/.ATTRIBUTES/VARIABLE_VALUE``, ``opt/iter/...``, ``opt/learning_rate/...``, and for a slot
``var/.OPTIMIZER_SLOT/opt/m/...``. Restoring matches keys, not classes: what is not there yet is kept until it is
attached, and a slot is created as soon as its variable and its optimizer are both known.

Source: ``tf.train.Checkpoint``. The files are ours: safetensors, written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distopt import replica_context
from distopt.checkpoint.encoding import from_bytes, to_bytes
from distopt.checkpoint.files import write_durably
from distopt.checkpoint.state import DataPosition, TrainingState
from distopt.errors import CheckpointError
from distopt.optimizers.core import OptimizerCore
from distopt.types import Array
from distopt.variable import Variable

SUFFIX = ".safetensors"
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
_SLOT = ".OPTIMIZER_SLOT"


class RestoreStatus:
    """What became of a restore; more may be matched when more objects are attached."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def assert_consumed(self) -> RestoreStatus:
        """Return itself.

        Raises: AssertionError that lists the saved values which no object has taken, or objects without a saved value.
        """
        left = sorted(set(self._checkpoint.pending) - {f"save_counter/{_VALUE}"})
        if left:
            raise AssertionError(f"saved values that no object has taken: {', '.join(left)}")
        return self.assert_existing_objects_matched()

    def assert_existing_objects_matched(self) -> RestoreStatus:
        """Return itself.

        Raises: AssertionError that lists the variables for which no value was saved.
        """
        unmatched = sorted(set(self._checkpoint.variables()) - self._checkpoint.taken)
        if unmatched:
            raise AssertionError(f"variables without a saved value: {', '.join(unmatched)}")
        return self

    def expect_partial(self) -> RestoreStatus:
        """Return itself; nothing is said about values that are not taken."""
        return self


class Checkpoint:
    """Objects that are saved and restored together, by the names of the keyword arguments.

    An object is a variable, an optimizer, anything with a list ``variables`` (a model), or a list, tuple or dictionary
    of these. Each is an attribute; one that is attached later takes what an earlier :meth:`restore` kept for it. One
    that is given without a name is ``root``.

    >>> import tempfile
    >>> weight = Variable(np.float32(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Checkpoint(weight=weight).save(f"{folder}/model")
    ...     _ = weight.assign(0.0)
    ...     _ = Checkpoint(weight=weight).restore(path).assert_consumed()
    >>> float(weight.numpy())
    3.0
    """

    def __init__(self, root: Any = None, /, **objects: Any) -> None:
        self._objects: dict[str, Any] = {}
        self.pending: dict[str, Array] = {}
        """Values that were restored and not taken yet, by key."""
        self.taken: set[str] = set()
        """Keys of the values that were taken."""
        self.save_counter = Variable(0, trainable=False, dtype=np.dtype(np.int64), name="save_counter")
        for name, value in (objects if root is None else {"root": root, **objects}).items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name not in ("_objects", "pending", "taken", "save_counter"):
            self._objects[name] = value
            self._take()

    def save(self, file_prefix: str, *, number: int | None = None) -> str:
        """Write everything to ``<file_prefix>-<n>``, and return that path.

        n is ``number``, or how often this was called. When this returns, the file is on the disk.

        Raises: CheckpointError if it cannot be written.
        """
        self.save_counter.assign_add(1)
        return self.write(f"{file_prefix}-{int(self.save_counter.numpy()) if number is None else number}")

    def write(self, file_prefix: str) -> str:
        """Write everything to ``file_prefix``, and return it.

        Raises: CheckpointError if it cannot be written.
        """
        state = TrainingState(
            iterations=int(self.save_counter.numpy()),
            variables=(),
            extras=self.values(),
            position=DataPosition(epoch=0, step=0),
            job_digest="",
        )
        path = Path(file_prefix + SUFFIX)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, to_bytes(state))
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} cannot be written: {error}") from error
        return file_prefix

    def read(self, save_path: str) -> RestoreStatus:
        """Give every attached object its saved value, and keep the rest for those that are attached later.

        Slots that were saved are created; ``learning_rate`` and other hypers are overwritten.

        Raises: CheckpointError if the file is absent or damaged; ValueError, before anything changes, for a value of
            another shape than its variable's.
        """
        path = Path(save_path.removesuffix(SUFFIX) + SUFFIX)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
        saved = dict(from_bytes(data, what=f"checkpoint {path}").extras)
        for key, variable in self.variables().items():
            if key in saved and saved[key].shape != variable.shape:
                raise ValueError(f"{key} has shape {list(saved[key].shape)} in {path}, not {list(variable.shape)}")
        self.pending, self.taken = saved, set()
        self._take()
        return RestoreStatus(self)

    def restore(self, save_path: str | None) -> RestoreStatus:
        """Do what :meth:`read` does; ``None``, what ``latest_checkpoint`` says of an empty folder, restores nothing."""
        return RestoreStatus(self) if save_path is None else self.read(save_path)

    def values(self) -> dict[str, Array]:
        """Return copies of all values, by key."""
        found = {key: variable.numpy() for key, variable in self.variables().items()}
        for name, optimizer in self._optimizers():
            found |= {f"{name}/{extra}/{_VALUE}": value for extra, value in optimizer.state().extras.items()}
        return found

    def variables(self) -> dict[str, Variable]:
        """Return the variables, by key: attached ones, those of models, each optimizer's count and slots."""
        found = {f"{path}/{_VALUE}": variable for path, variable in self._attached()}
        found[f"save_counter/{_VALUE}"] = self.save_counter
        for name, optimizer in self._optimizers():
            for path, variable in self._attached():
                for slot, kept in optimizer.slots.variables_of(variable).items():
                    found[f"{path}/{_SLOT}/{name}/{slot}/{_VALUE}"] = kept
            if optimizer.has_iterations:
                found[f"{name}/iter/{_VALUE}"] = optimizer.iterations
        return found

    def _take(self) -> None:
        if not self.pending:
            return
        optimizers = dict(self._optimizers())
        for path, variable in self._attached():
            for name, optimizer in optimizers.items():
                start = f"{path}/{_SLOT}/{name}/"
                for key in [key for key in self.pending if key.startswith(start)]:
                    slot = key.removeprefix(start).removesuffix(f"/{_VALUE}")
                    value = self.pending[key]
                    optimizer.slots.add(variable, slot, shape=value.shape)
        for name, optimizer in optimizers.items():
            if f"{name}/iter/{_VALUE}" in self.pending:
                _ = optimizer.iterations
            start = f"{name}/"
            own = [key for key in self.pending if key.startswith(start)]
            extras = {key: key.removeprefix(start).removesuffix(f"/{_VALUE}") for key in own}
            loaded = optimizer.load_extras({extra: self.pending[key] for key, extra in extras.items()})
            self._mark(key for key, extra in extras.items() if extra in loaded)
        for key, variable in self.variables().items():
            if key in self.pending:
                # Every copy gets the value; of one that is a sum when it is read, its share.
                replica_context.current().access.assign(variable, "assign", self.pending[key])
                self._mark([key])

    def _mark(self, keys: Any) -> None:
        for key in list(keys):
            del self.pending[key]
            self.taken.add(key)

    def _attached(self) -> Iterator[tuple[str, Variable]]:
        for path, value in _leaves("", self._objects):
            if isinstance(value, Variable):
                yield path, value
            elif not isinstance(value, OptimizerCore):
                for index, variable in enumerate(getattr(value, "variables", ())):
                    yield f"{path}/variables/{index}", variable

    def _optimizers(self) -> Iterator[tuple[str, OptimizerCore]]:
        return ((path, value) for path, value in _leaves("", self._objects) if isinstance(value, OptimizerCore))


def latest_checkpoint(checkpoint_dir: str) -> str | None:
    """Return the path that :meth:`Checkpoint.save` returned last in a folder; ``None`` if there is none."""
    found = saved_in(checkpoint_dir)
    return found[-1] if found else None


def saved_in(checkpoint_dir: str, name: str = "*") -> list[str]:
    """Return the paths ``<name>-<n>`` of the checkpoints in a folder, the latest one last."""
    found = sorted(
        Path(checkpoint_dir).glob(f"{name}-*{SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path.name)
    )
    return [str(path).removesuffix(SUFFIX) for path in found]


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        entries = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list | tuple):
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    else:
        yield path, value
        return
    for name, entry in entries:
        yield from _leaves(f"{path}/{name}" if path else name, entry)
