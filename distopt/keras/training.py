"""``compile``, ``fit``, ``evaluate`` and ``predict``: the loop around a model.

Theory of operation: the data are cut into global batches, which the strategy splits over replicas. Each replica adds
up its losses and divides by the number of elements in the *global* batch, so that the sum of the replicas' gradients
is the gradient of the mean over the batch, however its rows are spread and also where the last batch is short. Figures
are summed per replica in float64 and over replicas once an epoch, so each example counts once.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from distopt import losses, ops, random, replica_context
from distopt.autodiff.tape import GradientTape
from distopt.distribute import Strategy
from distopt.keras import losses as keras_losses
from distopt.keras import metrics as keras_metrics
from distopt.keras import optimizers
from distopt.keras.layers import Layer
from distopt.keras.losses import LossLike
from distopt.keras.metrics import Metric, MetricLike
from distopt.losses import Reduction
from distopt.sampling import batch_bounds, batch_length, epoch_permutation, num_steps
from distopt.types import Array

Batch = tuple[Any, ...]


class History:
    """What ``fit`` returns: ``history[name][i]`` is a figure of epoch ``epoch[i]``."""

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def append(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add the figures of one epoch."""
        self.epoch.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)


class Model(Layer):
    """A layer that can be trained; a subclass defines ``call``, and ``build`` if it makes variables itself."""

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._strategy: Strategy = replica_context.get_strategy()
        self._loss: keras_losses.Loss | None = None
        self._metrics: list[Metric] = []
        self._optimizer: Any = None

    @property
    def optimizer(self) -> Any:
        """The optimizer that ``compile`` was given."""
        return self._optimizer

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: LossLike | None = None,
        metrics: Sequence[MetricLike] | None = None,
        *,
        run_eagerly: bool | None = None,
        steps_per_execution: int | None = None,
        jit_compile: Any = None,
    ) -> None:
        """Set how the model is trained, under the strategy that is current here, or was when the model was made.

        The loss may have any reduction but ``none``: ``auto`` and ``sum_over_batch_size`` mean the mean over the
        elements of the global batch. ``run_eagerly``, ``steps_per_execution`` and ``jit_compile`` have no effect.

        Raises: ValueError for an unknown name, or a loss with reduction ``none``.
        """
        del run_eagerly, steps_per_execution, jit_compile
        chosen = None if loss is None else keras_losses.get(loss)
        if chosen is not None and chosen.reduction is Reduction.NONE:
            raise ValueError("a loss with reduction 'none' gives no number to minimize; use 'sum' or 'auto'")
        if replica_context.has_strategy():
            self._strategy = replica_context.get_strategy()
        self._loss = chosen
        self._metrics = [keras_metrics.get(metric) for metric in metrics or ()]
        self._optimizer = optimizers.get(optimizer)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        validation_data: Any = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        seed: int | None = None,
    ) -> History:
        """Train for the epochs ``initial_epoch <= e < epochs``, and return the figures of each.

        ``x`` and ``y`` are arrays, or ``x`` is an iterable of *global* batches ``(x, y)`` or ``(x, y,
        sample_weight)``, such as a Dataset; so is ``validation_data``, as a tuple or an iterable. ``batch_size`` is
        that of the global batch, by default 32. Arrays are visited in the order ``epoch_permutation(seed, epoch,
        n)``; ``seed`` is by default that of ``distopt.random.set_seed``, so two calls visit the data alike unless the
        second is given an ``initial_epoch`` or another seed. With an optimizer's ``use_ema`` the variables end as their
        averages, unless servers keep these.

        With ``steps_per_epoch`` an epoch is so many batches, and the next one goes on where it ended: for data that
        repeat without end.

        Raises: RuntimeError if the model was not compiled with a loss; ValueError for data that do not fit together, or
            run out before ``steps_per_epoch``.
        """
        self._require_loss("fit")
        data = _GlobalBatches(x, y, sample_weight, batch_size, random.get_seed() if seed is None else seed, shuffle)
        stream = None if steps_per_epoch is None else data.from_epoch(initial_epoch)
        history = History()
        for epoch in range(initial_epoch, epochs):
            batches = data.of_epoch(epoch) if stream is None else _exactly(steps_per_epoch, stream)
            logs = self._run_epoch(batches, self._train_step)
            if validation_data is not None:
                held_out = validation_data if isinstance(validation_data, (tuple, list)) else (validation_data,)
                x_held, y_held, weight_held = (*held_out, None, None)[:3]
                figures = self._evaluate(x_held, y_held, weight_held, batch_size)
                logs |= {f"val_{name}": value for name, value in figures.items()}
            history.append(epoch, logs)
            self._report(verbose, f"Epoch {epoch + 1}/{epochs}", logs)
        if self._optimizer.keeps_slots:
            self._optimizer.finalize_variable_values(self.trainable_variables)
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Return the loss, or ``[loss, *metrics]`` if there are metrics, or a dictionary of them.

        Arguments are those of ``fit``. Each example counts once, at any number of replicas.
        """
        self._require_loss("evaluate")
        logs = self._evaluate(x, y, sample_weight, batch_size)
        self._report(verbose, "Evaluation", logs)
        if return_dict:
            return logs
        return list(logs.values()) if self._metrics else logs["loss"]

    def predict(self, x: Any, batch_size: int | None = None) -> Array:
        """Return the outputs for all of ``x`` (an array, or an iterable of batches), computed in this process.

        Raises: ValueError if there is no batch.
        """
        outputs = [np.asarray(self(batch[0])) for batch in _GlobalBatches(x, None, None, batch_size).of_epoch(0)]
        if not outputs:
            raise ValueError("predict was given no data")
        return np.concatenate(outputs)

    def summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Write a table of the layers and their numbers of parameters; each line goes to ``print_fn`` if given."""
        layers = self._sublayers()
        rows = [("Layer", "Params"), *((f"{la.name} ({type(la).__name__})", _params(la)) for la in layers)]
        width = max(len(name) for name, _ in rows)
        trainable = sum(math.prod(variable.shape) for variable in self.trainable_variables)
        lines = [f'Model: "{self.name}"', *(f"{name:<{width}}  {count:>12}" for name, count in rows)]
        lines.append(f"Total params: {_params(self)}, trainable: {trainable:,}")
        for line in lines:
            (print_fn or _write_line)(line)

    # ------------------------------------------------------------ one epoch

    def _run_epoch(self, batches: Iterable[Batch], step: Callable[[_Totals, Batch, int], None]) -> dict[str, float]:
        strategy = self._strategy
        totals: dict[int, _Totals] = {}
        counted = _Counted(batches, self._build_for)
        figures = 2 + 2 * len(self._metrics)

        def replica_step(batch: Batch, global_rows: int) -> None:
            replica = replica_context.current_replica("fit").replica_id_in_sync_group
            step(totals.setdefault(int(replica), _Totals(figures)), batch, global_rows)

        def replica_sums() -> Array:
            replica = replica_context.current_replica("fit").replica_id_in_sync_group
            return totals.setdefault(int(replica), _Totals(figures)).sums

        num_batches = 0
        for part in strategy.experimental_distribute_dataset(counted):
            strategy.run(replica_step, args=(part, counted.lengths.popleft()))
            num_batches += 1
        if not num_batches:
            raise ValueError("there are no data to go through")
        sums = np.asarray(strategy.reduce("SUM", strategy.run(replica_sums), axis=None))
        assert self._loss is not None, "checked by the callers"
        if self._loss.reduction is Reduction.SUM:
            sums = np.concatenate([[sums[0], num_batches], sums[2:]])
        names = ["loss", *(metric.name for metric in self._metrics)]
        return {name: float(sums[2 * i] / max(sums[2 * i + 1], 1.0)) for i, name in enumerate(names)}

    def _train_step(self, totals: _Totals, batch: Batch, global_rows: int) -> None:
        with GradientTape() as tape:
            predictions, per_example, penalty = self._forward(batch, training=True)
            objective = ops.reduce_sum(per_example)
            assert self._loss is not None, "checked by fit"
            if self._loss.reduction is not Reduction.SUM:
                elements = global_rows * math.prod(per_example.shape[1:])
                objective = objective / per_example.dtype.type(max(elements, 1))
            if penalty is not None:
                objective = objective + losses.scale_regularization_loss(penalty)
        self._optimizer.minimize(objective, self.trainable_variables, tape=tape)
        self._count(totals, batch, predictions, per_example, penalty)

    def _test_step(self, totals: _Totals, batch: Batch, global_rows: int) -> None:
        del global_rows
        self._count(totals, batch, *self._forward(batch, training=False))

    def _forward(self, batch: Batch, training: bool) -> tuple[Any, Any, Any]:
        x, y, *weight = batch
        assert self._loss is not None, "checked by the callers"
        predictions = self(x, training=training)
        y = _as_column(y, predictions)
        per_example = losses.weighted(self._loss.call(y, predictions), *weight)
        penalties = self.losses
        return predictions, per_example, sum(penalties[1:], penalties[0]) if penalties else None

    def _count(self, totals: _Totals, batch: Batch, predictions: Any, per_example: Any, penalty: Any) -> None:
        assert self._loss is not None, "checked by the callers"
        _, y, *weight = batch
        values = per_example.numpy()
        total = float(values.sum(dtype=np.float64))
        if penalty is not None:
            share = values.size
            if self._loss.reduction is Reduction.SUM:
                share = 1 / replica_context.current_replica("fit").num_replicas_in_sync
            total += float(np.asarray(penalty)) * share
        totals.add(0, (total, values.size))
        if self._metrics:
            outputs = predictions.numpy()
            for i, metric in enumerate(self._metrics, start=1):
                totals.add(i, keras_metrics.weighted_sum(metric.measure(y, outputs), *weight))

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> dict[str, float]:
        return self._run_epoch(_GlobalBatches(x, y, sample_weight, batch_size).of_epoch(0), self._test_step)

    # ------------------------------------------------------------ around it

    def _build_for(self, batch: Batch) -> None:
        """Build the model for rows like those of ``batch``, outside of replicas and tapes."""
        if not self.built or any(not layer.built for layer in self._sublayers()):
            is_current = replica_context.get_strategy() is self._strategy
            with nullcontext() if is_current else self._strategy.scope():
                self(batch[0][:1])

    def _require_loss(self, caller: str) -> None:
        if self._loss is None:
            raise RuntimeError(f"{self.name} has no loss: call compile(optimizer, loss) before {caller}")

    def _report(self, verbose: int | str, title: str, logs: Mapping[str, float]) -> None:
        if verbose and getattr(self._strategy.extended, "rank", 0) == 0:
            _write_line(" - ".join([title, *(f"{name}: {value:.4f}" for name, value in logs.items())]))


class _Totals:
    """Sums and counts of one replica: ``[loss, elements, metric, examples, ...]``."""

    def __init__(self, length: int) -> None:
        self.sums = np.zeros(length)

    def add(self, figure: int, total_and_count: tuple[float, float]) -> None:
        """Add to the sum and the count of the figure of that number."""
        self.sums[2 * figure] += total_and_count[0]
        self.sums[2 * figure + 1] += total_and_count[1]


class _Counted:
    """Batches, whose numbers of rows are noted as they pass; ``on_first`` gets the first one before it passes."""

    def __init__(self, batches: Iterable[Batch], on_first: Callable[[Batch], None]) -> None:
        self.lengths: deque[int] = deque()
        self._batches = batches
        self._on_first: Callable[[Batch], None] | None = on_first

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            if not isinstance(batch, tuple) or not 2 <= len(batch) <= 3:
                raise ValueError("a batch must be a tuple (x, y) or (x, y, sample_weight)")
            if self._on_first is not None:
                self._on_first(batch)
                self._on_first = None
            self.lengths.append(batch_length(batch))
            yield batch


class _GlobalBatches:
    """The global batches of an epoch: those of an iterable, or rows of arrays in a random order if there is a seed."""

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        batch_size: int | None,
        seed: int | None = None,
        shuffle: bool = False,
    ) -> None:
        if x is None:
            raise ValueError("there are no data: x is None")
        self._iterable = x if y is None and not hasattr(x, "shape") and not isinstance(x, list) else None
        if self._iterable is not None:
            return
        parts = [part for part in (x, y, sample_weight) if part is not None]
        self._arrays = tuple(part if hasattr(part, "ndim") else np.asarray(part) for part in parts)
        self._arrays = tuple(np.asarray(array) for array in self._arrays)
        self._length = batch_length(self._arrays)
        self._batch_size = 32 if batch_size is None else batch_size
        self._seed = seed if shuffle else None
        num_steps(self._length, self._batch_size)

    def from_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of this epoch and, of arrays, of those that follow; an iterable is read once."""
        if self._iterable is not None:
            return self.of_epoch(epoch)
        return itertools.chain.from_iterable(map(self.of_epoch, itertools.count(epoch)))

    def of_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches as tuples."""
        if self._iterable is not None:
            for batch in self._iterable:
                yield tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            return
        order = None if self._seed is None else epoch_permutation(self._seed, epoch, self._length)
        for step in range(num_steps(self._length, self._batch_size)):
            start, stop = batch_bounds(self._length, self._batch_size, step)
            rows = slice(start, stop) if order is None else order[start:stop]
            yield tuple([array[rows] for array in self._arrays])


def _exactly(count: int | None, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the next ``count`` batches.

    Raises: ValueError if there are fewer.
    """
    for step in range(count or 0):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the data ran out after {step} of {count} steps of an epoch; repeat() them")
        yield batch


def _as_column(y: Any, predictions: Any) -> Any:
    """Return labels ``[b]`` of predictions with more axes as ``[b, 1]``, as the reference's ``fit`` does."""
    return np.asarray(y)[:, np.newaxis] if np.ndim(y) == 1 < len(predictions.shape) else y


def _params(layer: Layer) -> str:
    return f"{layer.count_params():,}" if layer.built else "not built"


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
