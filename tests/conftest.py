"""What every test starts from, seeded random numbers and Keras' own dtype policy; and how little memory is left behind.

TensorFlow and Keras are imported where they are used: the process that hands tests to the workers needs neither.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import re

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# References are small: threads of NumPy's linear algebra would only wait for each other, and keep a core busy with that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# By how much a process may grow within a module before it forgets what it could use again, and must trace anew.
MOST_MEGABYTES = 2000
held = 0


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look through it again and again."""
    global held
    gc.collect()
    gc.freeze()
    held = megabytes()


def forget():
    """Gives back memory: of solves that the package keeps, of functions that TensorFlow keeps ready, and of the allocator."""
    global held
    import keras

    from keras_ode import execution, programs

    execution._compiled.clear()
    programs._kept.clear()
    keras.utils.set_random_seed(0)  # TensorFlow then makes all functions ready anew
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = megabytes()


def megabytes():
    """What the process holds, or nothing where that is not known."""
    with contextlib.suppress(OSError):
        return int(re.search(r"VmRSS:\s*(\d+)", pathlib.Path("/proc/self/status").read_text()).group(1)) / 1000
    return 0


@pytest.fixture(scope="module", autouse=True)
def tidy_module():
    import keras

    keras.utils.set_random_seed(0)
    yield
    forget()


@pytest.fixture(autouse=True)
def fresh_start():
    import keras

    from tests.seeds import seed

    seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    if megabytes() > held + MOST_MEGABYTES:
        forget()
