"""Draws recorder_steps.png and recorder_nfe.png for docs/callbacks.md: `python docs/images/recorder.py`."""

import pathlib

import keras
import matplotlib.pyplot as plt

import keras_ode
from keras_ode import plotting

FOLDER = pathlib.Path(__file__).parent


def main():
    keras.utils.set_random_seed(0)
    plt.style.use(plotting.STYLE)
    points, labels = keras_ode.datasets.spirals(2000)
    dynamics = keras.Sequential([keras.layers.Dense(64, activation="tanh"), keras.layers.Dense(2)])
    ode = keras_ode.ODELayer(dynamics, t=(0.0, 1.0), name="flow")
    model = keras.Sequential([keras.Input([2]), ode, keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    recorder = keras_ode.callbacks.SolverStepRecorder(probe=points[:100])
    model.fit(points, labels, epochs=20, callbacks=[recorder], verbose=2)
    recorder.plot().savefig(FOLDER / "recorder_steps.png", dpi=80)
    recorder.plot_nfe().savefig(FOLDER / "recorder_nfe.png", dpi=80)


if __name__ == "__main__":
    main()
