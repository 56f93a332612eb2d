"""A program that is only read, by mypy: it accepts `right`, and reports an error in each line of `wrong` that names one."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import keras_ode
import keras_ode.probability


def decay(t: Any, y: Any) -> Any:
    return -y


def right(layer: Any, tensor: Any) -> None:
    t, rows = np.linspace(0.0, 1.0, 3), np.ones([4, 2])
    solution = keras_ode.solve(decay, {"x": [1.0], "v": (2.0, 1j)}, [0.0, 1.0], max_steps=64, dense=True)
    assert_type(solution, keras_ode.Solution)
    print(solution.evaluate(t)["x"], solution.ys["v"][0])
    assert_type(sorted(solution.stats), list[str])
    keras_ode.solve(decay, rows, t, solver=keras_ode.solvers.Tsit5(), adjoint=keras_ode.adjoints.Backsolve(8), args=(1.0, rows))
    keras_ode.solve(lambda y: -y, tensor, 1, rtol=tensor, norm="max", controller=keras_ode.controllers.PID(p=0.4), on_step=print)
    keras_ode.solve(decay, [rows, tensor], [0, tensor], event=keras_ode.Event(decay, direction=-1), jump_times=[0.5])
    keras_ode.solve(decay, rows, [[0.0, 1.0], [0.0, 2.0]], per_sample=True, step_size=[0.1, 0.2], jit_compile=False, save="steps")
    keras_ode.solve(decay, 1.0, float("inf"), event=keras_ode.SteadyState(rtol=1e-3), mass_matrix=[[1, 0], [0, 0]])
    keras_ode.odeint(decay, rows, t, solver="dopri5")[-1]
    ode = keras_ode.ODELayer(layer, t=keras_ode.regularizers.random_end_time(), regularizer=["kinetic"], rtol=1e-4, name="ode")
    print(ode(rows, t=[0.0, 1.0], args=(tensor,), training=True).shape)
    assert_type(ode.solve(rows, rtol=1e-6), keras_ode.Solution)
    ode.rtol.assign(1e-5)
    assert_type(keras_ode.estimate(decay, rows, t, variables=[tensor], optimizer="lbfgs").loss, float)
    keras_ode.multiple_shooting(decay, rows, t, group_size=3, starts=tensor)
    assert_type(keras_ode.check_gradients(decay, rows, t).errors, dict[str, float])
    assert_type(keras_ode.collocate(t, rows, kernel="gaussian"), keras_ode.Collocation)
    assert_type(keras_ode.datasets.moons(100, noise=0.2), tuple[NDArray[np.float32], NDArray[np.int32]])
    assert_type(keras_ode.solvers.get("tsit5"), keras_ode.solvers.Solver)
    path = keras_ode.paths.CubicPath(t, rows, kind="hermite")
    assert_type(path, keras_ode.paths.CubicPath)
    keras_ode.solve(decay, rows, t, args=(path,), jump_times=path.knots)
    keras_ode.models.ODENet(10, channels=8, rtol=1e-2)
    keras_ode.probability.Flow(layer, event_shape=[2])
    keras_ode.callbacks.ToleranceSchedule(rtol={0: 1e-2, 10: 1e-4}, atol=lambda epoch: 1e-3 / (epoch + 1))
    recorder = keras_ode.callbacks.SolverStepRecorder(every=2, layers=[ode, "other"])
    assert_type(recorder.records, list[keras_ode.callbacks.SolveRecord])


def wrong(layer: Any) -> None:
    rows = np.ones([4, 2])
    keras_ode.solve(3, rows, 1.0)  # error: arg-type
    keras_ode.solve(rows, decay, 1.0)  # error: arg-type
    keras_ode.solve(decay, rows)  # error: call-arg
    keras_ode.solve(decay, rows, "1.0")  # error: arg-type
    keras_ode.solve(decay, None, 1.0)  # error: arg-type
    keras_ode.solve(decay, rows, 1.0, solvr="tsit5")  # error: call-arg
    keras_ode.solve(decay, rows, 1.0, solver=3)  # error: arg-type
    keras_ode.solve(decay, rows, 1.0, solver=keras_ode.controllers.PID())  # error: arg-type
    keras_ode.solve(decay, rows, 1.0, rtol="small")  # error: arg-type
    keras_ode.solve(decay, rows, 1.0, max_steps=1e3)  # error: arg-type
    keras_ode.solve(decay, rows, 1.0, norm="l2")  # error: arg-type
    keras_ode.solve(decay, rows, 1.0, save="all")  # error: arg-type
    print(keras_ode.solve(decay, rows, 1.0).states)  # error: attr-defined
    print(keras_ode.sovle)  # error: attr-defined
    keras_ode.odeint(decay, rows, None)  # error: arg-type
    keras_ode.ODELayer("tsit5")  # error: arg-type
    keras_ode.ODELayer(layer, solver=None)  # error: arg-type
    keras_ode.ODELayer(layer, per_sample="yes")  # error: arg-type
    keras_ode.ODELayer(layer)(rows, "1.0")  # error: arg-type
    keras_ode.solvers.Tsit5(5)  # error: call-arg
    keras_ode.adjoints.Backsolve(checkpoints="all")  # error: arg-type
    keras_ode.controllers.PID(q=1.0)  # error: call-arg
    keras_ode.Event(decay, direction="down")  # error: arg-type
    keras_ode.paths.CubicPath([0.0, 1.0], rows, kind="linear")  # error: arg-type
    keras_ode.collocate([0.0, 1.0], rows, kernel="box")  # error: arg-type
    keras_ode.callbacks.SolverStepRecorder(every="step")  # error: arg-type
    keras_ode.probability.Flow(layer)  # error: call-arg
    keras_ode.datasets.moons(noise="much")  # error: arg-type
