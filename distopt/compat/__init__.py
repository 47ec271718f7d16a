"""Earlier generations of TensorFlow's names: ``tf.compat.v1``."""

from distopt.compat import v1

__all__ = ["v1"]
