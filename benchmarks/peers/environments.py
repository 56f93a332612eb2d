"""The Python environments of the peers, made when they are missing.

They lie in `~/.cache/keras_ode_benchmarks`. pip's own settings hold: with `PIP_EXTRA_INDEX_URL` at PyTorch's index of CPU
builds, PyTorch comes from there and not with gigabytes of CUDA.
"""

import pathlib
import subprocess
import sys
import venv

CACHE = pathlib.Path.home() / ".cache" / "keras_ode_benchmarks"
REQUIREMENTS = {
    "diffrax": ("diffrax==0.7.2", "jax==0.10.2"),
    "torchdiffeq": ("torchdiffeq==0.2.5", "torch==2.13.0", "numpy"),
    "torchode": ("torchode==1.0.1", "torch==2.13.0", "numpy"),
    "tfp": ("tensorflow-probability[tf]==0.25.0", "tensorflow==2.21.0", "tf_keras==2.21.0"),
}


def python(peer):
    """The interpreter of a peer's environment; keras_ode runs in this one."""
    if peer not in REQUIREMENTS:
        return sys.executable
    home, wanted = CACHE / peer, "\n".join(REQUIREMENTS[peer])
    interpreter, installed = home / "bin" / "python", home / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted:
        print(f"installing {' '.join(REQUIREMENTS[peer])} in {home}", file=sys.stderr)
        venv.create(home, clear=True, with_pip=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]], check=True)
        installed.write_text(wanted)
    return str(interpreter)
