"""Training loops of one's own that go on without the processes that they lose; ``tf.elastic``.

::

    def train(strategy, state):
        with strategy.scope():
            model, optimizer = build()
        state.follow(optimizer, model)
        for step in range(state.step, STEPS):
            strategy.run(train_step, args=(...,))       # a function of state and step
            state.commit()

    tf.elastic.run(train, replicas=6)

Theory of operation. A commit says that one more step is done; every so often it keeps a copy of the whole state in
memory, on every process. When a process is lost, all others leave ``train`` by a PeerLostError, make a communicator of
themselves, and call ``train`` once more, with a strategy in which they host all replicas. ``follow`` then gives the new
variables the furthest state that one of them has kept. Steps after it are made again, to the same bits, because what a
step computes depends on the step and on the state alone, not on who computes it.

``distopt train`` goes on in the same way (:mod:`distopt.elastic.survival`), and knows more of its loop: where
nothing of the state was lost, it goes on from the variables as they are, and makes no step again.
"""

from __future__ import annotations

from distopt.elastic.loop import State, run

__all__ = ["State", "run"]
