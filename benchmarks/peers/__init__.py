"""keras_ode beside its peers: `python -m benchmarks.peers`."""
