"""What TensorFlow has and distopt does not: one table of names, and the error that says what to use instead.

Rules of this file: a name that comes to be offered is taken out of the table; a test holds it against the modules.
"""

from __future__ import annotations

import difflib
import functools
from types import ModuleType
from typing import Any

from distopt.errors import NotOfferedError

_EAGER = "operations run at once, so there is nothing to build; see distopt.compat.v1 for graphs and sessions"
_DEVICES = "there are no devices to choose: NumPy computes on the processor, replicas are a strategy's; leave it out"
_NO_POLICY = "layers compute in the dtype of their variables; make these float16 or bfloat16 where you want them"
_NUMPY = "use NumPy"
_CHECKPOINT = "use distopt.train.Checkpoint for variables and optimizers, or a job's checkpoints (`distopt train`)"
_SAVE_IN_CALLBACK = (
    "save in a Callback's on_epoch_end: distopt.train.Checkpoint(model=self.model, optimizer=self.model.optimizer)"
    ".save(path), and restore it before fit with initial_epoch"
)
_SMALL_KERAS = "write a subclass of distopt.keras.layers.Layer of the operations in distopt.nn and distopt.math"
_SERVER_LOOP = "start server and workers as one job: `distopt train configs/digits-server.toml`, docs/operations.md"
_ASYNCHRONOUS = "its updates are asynchronous, ours are synchronous; " + _SERVER_LOOP
_BUILT_IN = "the errors are Python's and distopt.errors'"

UNOFFERED: dict[str, str] = {
    # tf.compat.v1
    "compat.v1.ConfigProto": "sessions take no configuration: leave config out",
    "compat.v1.Print": "fetch the tensor in session.run, and print what comes back",
    "compat.v1.cond": "operations of a graph have no control flow: build the branch that is wanted, or use where",
    "compat.v1.data": "use distopt.data, and feed its batches to placeholders",
    "compat.v1.get_variable": "use Variable(initializer(shape), name=name), and keep the variable to use it again",
    "compat.v1.layers": "use distopt.keras.layers where things run eagerly, or variables and matmul in a graph",
    "compat.v1.py_func": "run the graph up to there, and feed what the function returns",
    "compat.v1.summary": "fetch the values, and write them with distopt.observe or a library of your own",
    "compat.v1.variable_scope": "use name_scope, which is in the names of variables too",
    "compat.v1.while_loop": "operations of a graph have no control flow: loop in Python, over session.run",
    "compat.v1.train.MonitoredTrainingSession": "use Session; `distopt train` restarts and checkpoints jobs",
    "compat.v1.train.Saver": "fetch the variables in session.run and keep the arrays; or a job's checkpoints",
    "compat.v1.train.Server": "start server and workers as one job: `distopt train`, docs/operations.md",
    # tf
    "Assert": "use distopt.debugging.assert_equal and its siblings",
    "CriticalSection": "replicas of a process take turns; nothing to lock",
    "DType": "dtypes are NumPy's: use numpy.dtype",
    "DeviceSpec": _DEVICES,
    "RaggedTensor": "use a dense tensor with padding, or IndexedSlices for rows",
    "RaggedTensorSpec": "use a dense tensor with padding",
    "SparseTensor": "use IndexedSlices for rows; other sparse tensors are not offered",
    "SparseTensorSpec": "use IndexedSlices for rows",
    "TensorArray": "use a Python list and distopt.stack",
    "TensorShape": "shapes are tuples of integers; take the tuple",
    "TensorSpec": "functions run eagerly; leave input_signature out",
    "TypeSpec": "functions run eagerly; leave it out",
    "argsort": "use numpy.argsort on .numpy(); no gradient flows through it",
    "audio": _NUMPY,
    "autograph": "functions run eagerly, Python's control flow included; leave it out",
    "batch_to_space": _NUMPY,
    "bitcast": "use .numpy().view(dtype)",
    "bitwise": _NUMPY,
    "broadcast_dynamic_shape": "use numpy.broadcast_shapes",
    "broadcast_static_shape": "use numpy.broadcast_shapes",
    "case": "operations run at once: use Python's if",
    "clip_by_average_norm": "use distopt.clip_by_norm",
    "complex": "complex numbers are not offered",
    "complex64": "complex numbers are not offered",
    "complex128": "complex numbers are not offered",
    "cond": "operations run at once: use Python's if",
    "config": _DEVICES,
    "custom_gradient": "write it of operations that are offered, or as an autograd primitive run by distopt.ops.call",
    "device": _DEVICES,
    "dynamic_partition": "use boolean_mask",
    "dynamic_stitch": "use gather on a concat",
    "edit_distance": "strings are not offered",
    "ensure_shape": "use distopt.debugging.assert_rank, or compare .shape, a tuple",
    "estimator": "use distopt.keras.Model with compile and fit, or a task with `distopt train`",
    "experimental": "nothing of tf.experimental is offered",
    "extract_volume_patches": _NUMPY,
    "feature_column": _NUMPY,
    "fingerprint": _NUMPY,
    "foldl": "operations run at once: use functools.reduce",
    "foldr": "operations run at once: use functools.reduce",
    "gather_nd": "index the tensor: params[tuple of index arrays]",
    "get_current_name_scope": "names have no scopes here; leave it out",
    "get_logger": "use logging.getLogger('distopt')",
    "get_static_value": "use .numpy()",
    "grad_pass_through": "use x + stop_gradient(f(x) - x)",
    "graph_util": _EAGER,
    "guarantee_const": "use stop_gradient",
    "hessians": "use nested GradientTapes",
    "histogram_fixed_width": "use numpy.histogram",
    "image": _NUMPY,
    "import_graph_def": _EAGER,
    "inside_function": "functions run eagerly: it would always be False",
    "io": "use NumPy and files; numpy.load, numpy.save",
    "is_symbolic_tensor": "operations run at once: it would always be False",
    "load_library": "compile a rule of your own instead, see docs/architecture.md",
    "load_op_library": "compile a rule of your own instead, see docs/architecture.md",
    "lookup": "strings and tables are not offered; use a dict or numpy.searchsorted before the model",
    "make_ndarray": "use numpy",
    "make_tensor_proto": "use numpy",
    "map_fn": "operations run at once: use a Python loop and distopt.stack",
    "meshgrid": "use numpy.meshgrid",
    "mixed_precision": "use float16 or bfloat16 variables with keras.optimizers' LossScaleOptimizer",
    "mlir": _EAGER,
    "no_gradient": "use stop_gradient",
    "nondifferentiable_batch_function": _EAGER,
    "numpy_function": "operations take and give NumPy arrays: call the function",
    "parallel_stack": "use distopt.stack",
    "profiler": "use a Python profiler",
    "py_function": "operations take and give NumPy arrays: call the function",
    "quantization": "quantized types are not offered",
    "queue": "use distopt.data.Dataset",
    "ragged": "use a dense tensor with padding",
    "raw_ops": "use distopt.ops",
    "realdiv": "use divide",
    "recompute_grad": "a tape keeps what it records; split the step instead",
    "register_tensor_conversion_function": "give the class an __array__ method",
    "required_space_to_batch_paddings": _NUMPY,
    "reverse_sequence": "use reverse on slices",
    "roll": "use numpy.roll, or concat of two slices",
    "saturate_cast": "use clip_by_value, then cast",
    "saved_model": _CHECKPOINT,
    "scan": "operations run at once: use a Python loop and distopt.stack",
    "scatter_nd": "use IndexedSlices, or numpy.add.at",
    "searchsorted": "use numpy.searchsorted",
    "sequence_mask": "compare distopt.range(maxlen) with the lengths",
    "sets": "use Python's sets",
    "shape_n": "use x.shape",
    "signal": "use numpy.fft on .numpy(); no gradient flows through it",
    "sort": "use numpy.sort on .numpy(), or gather with the order; no gradient flows through the order",
    "space_to_batch": _NUMPY,
    "sparse": "use IndexedSlices for rows",
    "strided_slice": "index the tensor: x[begin:end:stride]",
    "strings": "use Python's strings",
    "summary": "use a job's run folder (`distopt train`), distopt.observe",
    "switch_case": "operations run at once: use Python's if",
    "sysconfig": "there is nothing to link against",
    "tensor_scatter_nd_add": "use IndexedSlices, or numpy.add.at",
    "tensor_scatter_nd_update": "use where",
    "test": "use pytest; distopt.testing has what tests per replica need",
    "timestamp": "use time.time",
    "tpu": _DEVICES,
    "truncatediv": "use floordiv",
    "truncatemod": "use floormod",
    "type_spec_from_value": "functions run eagerly; leave it out",
    "unique": "use numpy.unique",
    "unravel_index": "use numpy.unravel_index",
    "variable_creator_scope": "create the variable with the arguments you want",
    "variant": "variants are not offered",
    "vectorized_map": "operations broadcast: write them for the batch",
    "version": "use distopt.__version__",
    "while_loop": "operations run at once: use Python's while",
    "xla": "rules are compiled by Numba by themselves; leave it out",
    # tf.math
    "math.angle": "complex numbers are not offered",
    "math.bincount": "use numpy.bincount",
    "math.confusion_matrix": "use numpy.add.at on pairs of labels",
    "math.count_nonzero": "use reduce_sum(cast(not_equal(x, 0), int64))",
    "math.cumprod": "use exp(cumsum(log(x))) for positive values",
    "math.cumulative_logsumexp": "use a Python loop of reduce_logsumexp",
    "math.digamma": "special functions are not offered",
    "math.erf": "special functions are not offered; tanh(sqrt(2/pi) * (x + 0.044715 * x**3)) is near",
    "math.erfc": "special functions are not offered",
    "math.igamma": "special functions are not offered",
    "math.in_top_k": "use numpy.argsort",
    "math.lbeta": "special functions are not offered",
    "math.lgamma": "special functions are not offered",
    "math.ndtri": "special functions are not offered",
    "math.polyval": "use Horner's rule in Python",
    "math.rint": "use round",
    "math.segment_max": "use numpy.maximum.at",
    "math.segment_mean": "use IndexedSlices",
    "math.segment_sum": "use IndexedSlices, or numpy.add.at",
    "math.top_k": "use numpy.argpartition",
    "math.unsorted_segment_sum": "use IndexedSlices, or numpy.add.at",
    "math.xlog1py": "use where(x == 0, 0, x * log1p(y))",
    "math.xlogy": "use where(x == 0, 0, x * log(y))",
    "math.zero_fraction": "use reduce_mean(cast(equal(x, 0), float32))",
    # tf.nn
    "nn.atrous_conv2d": "use conv2d with dilations",
    "nn.batch_normalization": "use moments and rsqrt",
    "nn.bidirectional_dynamic_rnn": "recurrent layers are not offered",
    "nn.conv1d": "use conv2d with an axis of length 1",
    "nn.conv3d": "images have two axes here",
    "nn.conv2d_transpose": "the derivative of conv2d is not offered as an operation",
    "nn.convolution": "use conv2d",
    "nn.crelu": "use concat([relu(x), relu(-x)], -1)",
    "nn.ctc_loss": "sequence losses are not offered",
    "nn.depthwise_conv2d": "use conv2d on each channel",
    "nn.embedding_lookup_sparse": "use embedding_lookup and reduce_sum",
    "nn.gelu": "use 0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))",
    "nn.local_response_normalization": "write it of the operations in distopt.math",
    "nn.nce_loss": "sampled losses are not offered",
    "nn.sampled_softmax_loss": "sampled losses are not offered",
    "nn.separable_conv2d": "use conv2d twice",
    "nn.top_k": "use numpy.argpartition",
    "nn.weighted_cross_entropy_with_logits": "multiply sigmoid_cross_entropy_with_logits by weights",
    # tf.linalg
    "linalg.band_part": "multiply by numpy.tri",
    "linalg.cholesky": "use numpy.linalg.cholesky; no gradient flows through it",
    "linalg.eigh": "use numpy.linalg.eigh; no gradient flows through it",
    "linalg.expm": "matrix functions are not offered",
    "linalg.logdet": "use log(det(x))",
    "linalg.lstsq": "use numpy.linalg.lstsq; no gradient flows through it",
    "linalg.qr": "use numpy.linalg.qr; no gradient flows through it",
    "linalg.svd": "use numpy.linalg.svd; no gradient flows through it",
    # tf.random
    "random.Generator": "use uniform and normal after set_seed: each draw of a replica is counted",
    "random.categorical": "use argmax(logits - log(-log(uniform(shape))), -1)",
    "random.gamma": "use numpy.random.Generator",
    "random.get_global_generator": "use uniform and normal after set_seed",
    "random.poisson": "use numpy.random.Generator",
    "random.stateless_normal": "use normal(shape, seed=n) directly after set_seed",
    "random.stateless_uniform": "use uniform(shape, seed=n) directly after set_seed",
    # tf.debugging
    "debugging.enable_check_numerics": "set what a non-finite gradient does on the optimizer, or call check_numerics",
    "debugging.experimental": "use Python's debugger: operations run at once",
    "debugging.is_numeric_tensor": "all tensors are",
    "debugging.set_log_device_placement": _DEVICES,
    # tf.data
    "data.Iterator": "use iter(dataset)",
    "data.TFRecordDataset": "use numpy.load and Dataset.from_tensor_slices",
    "data.TextLineDataset": "read the file into arrays, then Dataset.from_tensor_slices",
    # tf.distribute
    "distribute.Server": _SERVER_LOOP,
    "distribute.TPUStrategy": "use MirroredStrategy, or MultiWorkerMirroredStrategy",
    "distribute.experimental.ParameterServerStrategy": _ASYNCHRONOUS,
    "distribute.experimental.TPUStrategy": "use MirroredStrategy, or MultiWorkerMirroredStrategy",
    "distribute.experimental.coordinator": "the coordinator's schedule and join are not offered; " + _SERVER_LOOP,
    "distribute.coordinator": "the coordinator's schedule and join are not offered; " + _SERVER_LOOP,
    "distribute.ParameterServerStrategy": _ASYNCHRONOUS,
    # tf.train
    "train.CheckpointOptions": "there are none; leave it out",
    "train.checkpoints_iterator": "ask latest_checkpoint again",
    "train.list_variables": "restore into variables; the file is safetensors",
    # tf.errors
    "errors.AbortedError": _BUILT_IN + "; catch JobAbortedError",
    "errors.CancelledError": _BUILT_IN + "; catch JobAbortedError",
    "errors.DeadlineExceededError": _BUILT_IN + "; catch CollectiveTimeoutError",
    "errors.FailedPreconditionError": _BUILT_IN + "; catch RuntimeError",
    "errors.InternalError": _BUILT_IN + "; catch DistoptError",
    "errors.InvalidArgumentError": _BUILT_IN + "; catch ValueError",
    "errors.NotFoundError": _BUILT_IN + "; catch FileNotFoundError or CheckpointError",
    "errors.OpError": _BUILT_IN + "; catch DistoptError",
    "errors.OutOfRangeError": _BUILT_IN + "; a dataset that is over raises StopIteration",
    "errors.ResourceExhaustedError": _BUILT_IN + "; catch MemoryError",
    "errors.UnavailableError": _BUILT_IN + "; catch PeerLostError",
    "errors.UnimplementedError": _BUILT_IN + "; catch NotImplementedError",
    # tf.keras
    "keras.applications": "ready-made models are not offered; build one of distopt.keras.layers",
    "keras.backend": "use the operations of distopt, variable.assign and variable.numpy()",
    "keras.callbacks.BackupAndRestore": _SAVE_IN_CALLBACK,
    "keras.callbacks.CSVLogger": "write the logs of a Callback's on_epoch_end, or fit's History",
    "keras.callbacks.EarlyStopping": "set self.model.stop_training in a Callback's on_epoch_end",
    "keras.callbacks.ModelCheckpoint": _SAVE_IN_CALLBACK,
    "keras.callbacks.ReduceLROnPlateau": "set self.model.optimizer.learning_rate in a Callback's on_epoch_end",
    "keras.callbacks.TensorBoard": "write the logs of a Callback's on_epoch_end with a library of your own",
    "keras.callbacks.TerminateOnNaN": "set Checks(non_finite='raise') of the strategy",
    "keras.constraints": "pass a function of the value as `constraint`",
    "keras.datasets": "nothing is downloaded; distopt.tasks.digits has real data, numpy.load reads yours",
    "keras.estimator": "use distopt.keras.Model with compile and fit",
    "keras.mixed_precision.Policy": _NO_POLICY,
    "keras.mixed_precision.global_policy": _NO_POLICY,
    "keras.mixed_precision.set_global_policy": _NO_POLICY,
    "keras.models.load_model": _CHECKPOINT,
    "keras.models.save_model": _CHECKPOINT,
    "keras.models.clone_model": "call the function that builds the model again",
    "keras.models.model_from_json": "call the function that builds the model again",
    "keras.ops": "use distopt.ops, or the names of TensorFlow",
    "keras.preprocessing": _NUMPY,
    "keras.random": "use distopt.random",
    "keras.saving": _CHECKPOINT,
    "keras.layers.Add": "add the tensors in call",
    "keras.layers.AveragePooling1D": "use AveragePooling2D with an axis of length 1",
    "keras.layers.BatchNormalization": "use LayerNormalization, which has no moving statistics to bring together",
    "keras.layers.Bidirectional": "recurrent layers are not offered; " + _SMALL_KERAS,
    "keras.layers.CategoryEncoding": "use distopt.one_hot",
    "keras.layers.Concatenate": "use distopt.concat in call",
    "keras.layers.Conv1D": "use Conv2D with an axis of length 1",
    "keras.layers.Conv2DTranspose": _SMALL_KERAS,
    "keras.layers.Conv3D": _SMALL_KERAS,
    "keras.layers.DepthwiseConv2D": _SMALL_KERAS,
    "keras.layers.GRU": "recurrent layers are not offered; " + _SMALL_KERAS,
    "keras.layers.Lambda": "use Activation(function)",
    "keras.layers.LSTM": "recurrent layers are not offered; " + _SMALL_KERAS,
    "keras.layers.LeakyReLU": "use Activation(distopt.nn.leaky_relu)",
    "keras.layers.MultiHeadAttention": _SMALL_KERAS,
    "keras.layers.Normalization": "subtract mean and divide by deviation before the model, with NumPy",
    "keras.layers.PReLU": _SMALL_KERAS,
    "keras.layers.RNN": "recurrent layers are not offered; " + _SMALL_KERAS,
    "keras.layers.Rescaling": "multiply the data before the model",
    "keras.layers.SeparableConv2D": _SMALL_KERAS,
    "keras.layers.SimpleRNN": "recurrent layers are not offered; " + _SMALL_KERAS,
    "keras.layers.TextVectorization": "look words up before the model, in a dict",
    "keras.losses.CTC": "sequence losses are not offered",
    "keras.metrics.AUC": "compute it from Model.predict with NumPy",
    "keras.metrics.Precision": "compute it from Model.predict with NumPy",
    "keras.metrics.Recall": "compute it from Model.predict with NumPy",
}
"""By the name after ``tf.``: what to use instead."""

ELSEWHERE: dict[str, str] = {
    "debugging": "use assert_equal and its siblings, or Python's assert on .numpy()",
    "errors": _BUILT_IN,
    "keras.callbacks": "write a subclass of distopt.keras.callbacks.Callback",
    "keras.layers": _SMALL_KERAS,
    "keras.utils": "use NumPy for to_categorical; the rest is not offered",
    "keras.utils.experimental": "there is DatasetCreator alone",
    "keras.losses": "a function (y_true, y_pred) -> one loss per example is taken wherever a loss is",
    "keras.metrics": "a function (y_true, y_pred) -> one number per example is taken wherever a metric is",
    "linalg": "use numpy.linalg on .numpy(); no gradient flows through it",
    "math": "use NumPy on .numpy(), through which no gradient flows, or write it of the operations in distopt.math",
    "nn": "write it of the operations in distopt.nn and distopt.math",
    "random": "use numpy.random.Generator",
}
"""By module: what to use instead of a name that ``UNOFFERED`` does not have and that resembles none of the module."""


def guard(*modules: ModuleType) -> None:
    """Have each of ``modules`` raise NotOfferedError for a name that it does not have.

    That is an AttributeError, so ``hasattr`` and imports of submodules work as ever. It is set from outside, because a
    ``__getattr__`` that a type checker can see makes it take every name for one that exists.
    """
    for module in modules:
        vars(module)["__getattr__"] = functools.partial(_refuse, module)


def _refuse(module: ModuleType, name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    prefix = module.__name__.partition(".")[2]
    qualified = f"{prefix}.{name}" if prefix else name
    hint = UNOFFERED.get(qualified)
    if hint is None:
        near = difflib.get_close_matches(name, getattr(module, "__all__", ()), n=3, cutoff=0.75)
        hint = f"perhaps {' or '.join(near)}?" if near else ELSEWHERE.get(prefix, "docs/api.md lists what there is")
    raise NotOfferedError(f"tf.{qualified} is not offered by distopt: {hint}", name=name, obj=module)
