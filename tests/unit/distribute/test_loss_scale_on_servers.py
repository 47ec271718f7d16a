"""Scaled losses where servers make the update: steps are left out, and counted, as in one process, with its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import MirroredStrategy, SyncParameterServerStrategy
from distopt.distribute.served import load_named_arrays
from distopt.errors import PlacementError, UnaggregatedGradientsError
from distopt.optimizers import LossScaleOptimizer, LossScaleOptimizerV3
from tests.unit.distribute.test_rows_on_servers import REPLICAS, Job

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # of NumPy, about the sum
]

keras = tf.keras.optimizers
OPTIMIZERS: dict[str, Any] = {
    "legacy": lambda: LossScaleOptimizer(keras.Adam(0.1), initial_scale=4.0, dynamic_growth_steps=2),
    "legacy-clip": lambda: LossScaleOptimizer(keras.Adam(0.1, clipnorm=0.5), initial_scale=4.0, dynamic_growth_steps=2),
    "legacy-constant": lambda: LossScaleOptimizer(keras.Adam(0.1), dynamic=False, initial_scale=4.0),
    "keras3": lambda: LossScaleOptimizerV3(keras.Adam(0.1), 4.0, 2),
    "keras3-local-clip": lambda: LossScaleOptimizerV3(keras.AdamW(0.1, clipnorm=0.5), 4.0, 2),
}
HUGE = np.float32(3e38)


def fresh() -> list[Any]:
    return [tf.Variable(np.full(shape, 0.5, np.float32)) for shape in ((70, 90), (6, 3), ())]


def gradients(step: int, replica: int, sparse: bool) -> list[Any]:
    rng = np.random.default_rng([step, replica])
    dense, table, scalar = (np.asarray(rng.standard_normal(s), np.float32) for s in ((70, 90), (6, 3), ()))
    if step == 1 and replica == 3:
        dense[5, 7] = np.nan
    if step == 3:
        scalar = HUGE  # each is finite, the sum is not
    rows: Any = tf.IndexedSlices(table[:3], [0, 2, replica], (6, 3)) if sparse else table
    return [dense, rows, scalar]


def trained(strategy: Any, make: Any, sparse: bool) -> tuple[list[Any], Any, list[Any]]:
    with strategy.scope():
        variables = fresh()
    optimizer = make()
    finite = not getattr(optimizer, "dynamic", True)

    def replica_step(step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        step = 2 * step if finite and step % 2 else step
        given = gradients(step, context.replica_id_in_sync_group, sparse)
        optimizer.apply_gradients(zip(given, variables, strict=True))

    seen = []
    for step in range(6):
        strategy.run(replica_step, args=(step,))
        seen.append((float(optimizer.loss_scale), int(optimizer.iterations)))
    return variables, optimizer, seen


def everything(variables: list[Any], optimizer: Any, seen: list[Any]) -> list[Any]:
    return [*(a.tobytes() for a in (*(v.numpy() for v in variables), *optimizer.get_weights())), seen]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_left_out_on_servers_have_the_bits_of_one_process(name: str, sparse: bool) -> None:
    make = OPTIMIZERS[name]
    variables, optimizer, seen = trained(MirroredStrategy(REPLICAS), make, sparse)
    want = everything(variables, optimizer, seen)
    assert all(np.isfinite(v.numpy()).all() for v in variables)
    if name.startswith("legacy") and optimizer.dynamic:
        assert seen == [(4, 1), (2, 2), (2, 3), (1, 4), (1, 5), (2, 6)]
    elif name.startswith("keras3"):
        assert seen == [(4, 1), (2, 1), (2, 2), (1, 2), (1, 3), (2, 4)]

    def body(strategy: SyncParameterServerStrategy) -> list[Any]:
        variables, optimizer, seen = trained(strategy, make, sparse)
        layout = optimizer.layout(variables)
        for owned in strategy.communicator.fetch_state():
            load_named_arrays(optimizer, layout, owned.spans, dict(zip(owned.names, owned.arrays, strict=True)))
        return everything(variables, optimizer, seen)

    for workers, servers in ((1, 1), (2, 2)):
        assert Job(make, fresh).run(workers, servers, body) == [want] * workers


def double(pairs: Any) -> Any:
    return [(2.0 * gradient, variable) for gradient, variable in pairs]


def test_what_servers_cannot_do_with_a_scaled_loss_is_refused_by_name() -> None:
    def body(strategy: SyncParameterServerStrategy) -> None:
        with strategy.scope():
            variables = fresh()
        given = [*zip(gradients(0, 0, sparse=False), variables, strict=True)]
        hooked = LossScaleOptimizer(keras.SGD(0.1, gradient_transformers=[double]))
        with pytest.raises(PlacementError, match="so double would run twice"):
            strategy.run(lambda: hooked.apply_gradients(given))
        plain = LossScaleOptimizer(keras.SGD(0.1))
        with pytest.raises(UnaggregatedGradientsError):
            strategy.run(lambda: plain.apply_gradients(given, experimental_aggregate_gradients=False))

    Job(lambda: keras.SGD(0.1), fresh).run(1, 1, body)
