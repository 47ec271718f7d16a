"""Reverse-mode differentiation: a gradient tape on top of HIPS autograd.

Theory of operation. A value that a tape follows is wrapped in one of autograd's boxes: ``(value, trace, node)``. The
trace is the number of the tape; a box of an inner tape may hold a box of an outer one as its value, so that what
the inner tape computes, its backward pass included, is recorded by the outer tape too. A node remembers one
operation: its function, its arguments, and the nodes those came from.

Rules of this package:

- Trace numbers come from one process-wide counter (:mod:`.nodes`), which also replaces autograd's own. Autograd's
  is a shared level that goes up and down: two threads get the same number, and an exception leaves it too high.
- Nodes are numbered in the order of their creation, so a backward pass visits them from the newest to the oldest
  with a heap, and never sorts a graph. No list of nodes is kept: what no result depends on is freed at once.
- Which tapes record is known per thread. Boxes of tapes that do not record here are taken off before an operation
  runs, so nothing is recorded after the ``with`` block, or in another thread.
- With exactly one ordinary tape recording, operations take a short way (:func:`distopt.tensor.call`): plain arrays in,
  plain arrays out, hand-written backward functions that may reuse buffers. Persistent and nested tapes go through
  autograd's own dispatch, and through derivatives written in differentiable operations.

:class:`distopt.autodiff.tape.GradientTape` is the public face.
"""
