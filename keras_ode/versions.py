"""What a report of a fault needs to tell about the machine."""

import importlib.metadata
import os
import platform

import keras
import tensorflow as tf

_PACKAGES = ("keras_ode", "tensorflow", "keras", "tensorflow-probability", "tf_keras", "numpy", "matplotlib")
_VARIABLES = (
    "KERAS_BACKEND", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "TF_FORCE_GPU_ALLOW_GROWTH", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def show_versions() -> None:
    """Prints the versions of Python and of the packages, the devices, and what changes how TensorFlow computes.

    Include the output when you report a bug.

    Example:

    >>> keras_ode.show_versions()
    python: 3...
    """
    lines = {"python": platform.python_version(), "platform": platform.platform()}
    lines |= {name: _version(name) for name in _PACKAGES}
    devices = [f"{d.device_type} {_model(d)}".strip() for d in tf.config.list_physical_devices()]
    lines |= {
        "Keras backend": keras.config.backend(),
        "devices": ", ".join(devices),
        "default float": keras.config.floatx(),
        "dtype policy": keras.config.dtype_policy().name,
        "TensorFloat-32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "functions run eagerly": tf.config.functions_run_eagerly(),
    }
    lines |= {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    print("\n".join(f"{name}: {value}" for name, value in lines.items()))


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _model(device):
    return tf.config.experimental.get_device_details(device).get("device_name", "")
