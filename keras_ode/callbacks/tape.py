"""Records of the solves of a layer, in variables that can be written inside any compiled program."""

import numpy as np
import tensorflow as tf

from keras_ode import internals, tree
from keras_ode.errors import Status
from keras_ode.integrate import Clock
from keras_ode.step_records import NUM_NOTES, length


class Tape:
    """The records of one `ODELayer`: totals over many solves, and the steps of the last ones.

    Records are written through handles that are captured where the forward solve runs. A gradient function inside a
    differentiated loop, such as that of `keras.layers.RNN`, may use the handles, but not the variables.

    Args:
        layer: The `ODELayer`.
        label: The prefix of its logs.
        capacity: The maximum number of steps to store for a solve; `0` stores only totals.
        samples: The maximum number of samples of a batch to store, if every sample has its own steps.
        slots: The number of solves whose steps are stored.
    """

    def __init__(self, layer, label, capacity, samples, slots):
        self.layer, self.label, self.capacity = layer, label, capacity
        self.samples = samples if layer.per_sample else 1
        self.totals = Totals(label)
        directions = ("forward", "backward") if capacity else ()
        self._rings = {d: _Ring(capacity, self.samples, slots, layer.variable_dtype) for d in directions}

    def forward(self, result, record):
        rejected = result.num_steps - result.num_accepted
        self.totals.handle().add("forward", result.status, result.num_evaluations, rejected)
        if record:
            self._rings["forward"].handle().put(record, result.status)

    def backward(self):
        totals = self.totals.handle()
        ring = self._rings["backward"].handle() if self._rings else None

        def report(outcome, cotangents):
            # A backward solve that has no forward solve to start from is no second failure.
            status = tf.where(_count_failed(outcome.status) > 0, int(Status.SUCCESS), cotangents.status)
            operations = [totals.add("backward", status, cotangents.num_evaluations)]
            if ring is not None and cotangents.record:
                operations += ring.put(cotangents.record, cotangents.status)
            return operations

        return report

    def rewind(self):
        """Discards the recorded steps, but not the totals."""
        for ring in self._rings.values():
            ring.rewind()

    def read(self):
        """Returns for each direction the number of solves since `rewind`, and the stored counts and rows: see `_Ring`."""
        return {direction: ring.read() for direction, ring in self._rings.items()}


class Totals(internals.Metrics):
    """The four logs of a layer: means over the solves since the last reset."""

    def __init__(self, label):
        self.names = [f"{label}_{name}" for name in ("nfe", "nfe_backward", "rejected", "failures")]
        super().__init__(self.names, name=f"{label}_solver")
        # The sums of the four, and what each is divided by. Not tracked by Keras, so that nothing of it is saved.
        self._sums = _variable(np.zeros([2, 4], "float64"), tf.VariableAggregation.SUM)

    def handle(self):
        return _TotalsHandle(_local(self._sums))

    def reset_state(self):
        self._sums.assign(tf.zeros_like(self._sums))

    def update_state(self, *args, **kwargs):
        """Does nothing, because the solves update the totals themselves."""

    def result(self):
        """The means: every batch of `fit` runs these operations too."""
        sums, counts = tf.unstack(tf.convert_to_tensor(self._sums))
        return dict(zip(self.names, tf.unstack(tf.cast(tf.math.divide_no_nan(sums, counts), tf.float32)), strict=True))


class _TotalsHandle:
    """Adds a solve to the sums of the `Totals`."""

    def __init__(self, handle):
        self._handle = handle

    def add(self, direction, status, evaluations, rejected=0):
        failures = _count_failed(status)
        if status.shape.rank:
            # The dynamics is called until the last sample is done.
            evaluations, failures = tf.reduce_max(evaluations), tf.reduce_sum(failures)
            rejected = tf.reduce_mean(tf.cast(rejected, tf.float64))
            evaluations, failures = (tf.cast(n, tf.float64) for n in (evaluations, failures))
        # A backward failure is one of a solve that was counted forward.
        forward = direction == "forward"
        sums, counts = ([evaluations, 0], [1, 0, 1, 1]) if forward else ([0, evaluations], [0, 1, 0, 0])
        value = tf.reshape(tf.cast(tf.stack([*sums, rejected, failures, *counts]), tf.float64), [2, 4])
        return tf.raw_ops.AssignAddVariableOp(resource=self._handle, value=value)


class _Ring:
    """The records of the last solves, in a ring of slots: solve `n` is in slot `n % slots`.

    A slot has the rows of a `StepRecord`, with those of all stored samples. So a solve writes one variable, and the buffer that its
    loop filled becomes the slot as it is. The last row but one has three counts for each sample: the number of tried
    steps, the number of samples in the batch, and the number of rows (`-1` where the batch has no such sample). The last row has
    the sample's clock (zeros if it has none).

    Several slots need the number of solves since `rewind`; one slot has counts of `-1` until the first.
    """

    def __init__(self, capacity, samples, slots, dtype):
        self.slots, self.samples = slots, samples
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.calls = _variable(np.zeros([], "int32"), first) if slots > 1 else None
        dtype = "float64" if dtype == "float64" else "float32"  # which has room for 16 million steps
        self.records = _variable(np.full([slots, length(capacity), samples, 4], -1, dtype), first)

    def handle(self):
        return _RingHandle(self, None if self.calls is None else _local(self.calls), _local(self.records))

    def rewind(self):
        if self.calls is None:
            self.records.assign(tf.fill(self.records.shape, tf.constant(-1, self.records.dtype)))
        else:
            self.calls.assign(0)

    def read(self):
        records = tf.convert_to_tensor(self.records).numpy()
        counts = records[:, -2, :, :3].astype("int64")
        clocks = np.where(counts[..., :1] >= 0, records[:, -1, :, :3], 0)
        calls = int(counts[0, 0, 0] >= 0) if self.calls is None else int(tf.convert_to_tensor(self.calls).numpy())
        slots = [n % self.slots for n in range(max(0, calls - self.slots), calls)]
        rows = [records[slot, : -NUM_NOTES - 1][: counts[slot, 0, 2]] for slot in slots]
        return calls, [(counts[slot], _on_clock(clocks[slot], kept)) for slot, kept in zip(slots, rows, strict=True)]


class _RingHandle:
    def __init__(self, ring, calls, records):
        self._ring, self._calls, self._records = ring, calls, records

    def put(self, record, status):
        """Every batch runs these operations, so there are as few as possible."""
        entry = self._entry(record, status)
        if self._calls is None:
            return [tf.raw_ops.AssignVariableOp(resource=self._records, value=entry[None])]
        calls = tf.raw_ops.ReadVariableOp(resource=self._calls, dtype=tf.int32)
        put = tf.raw_ops.ResourceScatterUpdate(resource=self._records, indices=calls % self._ring.slots, updates=entry)
        with tf.control_dependencies([calls]):
            return [put, tf.raw_ops.AssignAddVariableOp(resource=self._calls, value=tf.constant(1))]

    def _entry(self, record, status):
        """Returns the slot of a solve: see `_Ring`."""
        dtype = self._ring.records.dtype
        rows, num_rows = tf.cast(record.rows, dtype), tf.cast(record.num_rows, dtype)
        clock = tf.cast(record.clock, dtype) if tf.is_tensor(record.clock) else tf.zeros([3], dtype)
        place = tf.constant(self._ring.records.shape[1] - NUM_NOTES)
        if not status.shape.rank:
            notes = tf.concat([tf.stack([num_rows, 1, num_rows, 0]), clock, [0]], axis=0)
            return tree.put_rows_in_place(rows, place, tf.reshape(notes, [NUM_NOTES, 4]))[:, None]
        num_steps = tf.cast(record.num_steps, dtype)
        shared = tf.stack([tf.cast(tf.size(status), dtype), num_rows, 0])
        counts = tf.concat([num_steps[:, None], tf.zeros_like(num_steps)[:, None] + shared], axis=1)
        clock = tf.zeros_like(counts) + tf.pad(clock, [[0, 0]] * (clock.shape.rank - 1) + [[0, 1]])
        rows = tree.put_rows_in_place(rows, place, tf.stack([counts, clock]))
        missing = self._ring.samples - tf.shape(num_steps)[0]
        return tf.pad(rows, [[0, 0], [0, missing], [0, 0]], constant_values=-1)


def _on_clock(clock, rows):
    """Converts the times of rows from the time since the start of a clock to the time of the equation: see `integrate.Clock`."""
    start, end, span = clock.T
    if not span.any():
        return rows
    clock = Clock(*map(tf.constant, (start, end, span)))
    time, size = clock.time(rows[..., 0]).numpy(), clock.direction.numpy() * rows[..., 1]
    return np.concatenate([time[..., None], size[..., None], rows[..., 2:]], axis=-1)


def _count_failed(status):
    """One for each status that is a failure, else zero: one operation, since every batch runs it."""
    return tf.gather([int(s not in (Status.SUCCESS, Status.EVENT)) for s in Status], status)


def _variable(value, aggregation):
    return tf.Variable(value, trainable=False, synchronization=tf.VariableSynchronization.ON_READ, aggregation=aggregation)


def _local(variable):
    """Returns the variable's handle, as a tensor of the graph that is being traced."""
    handle = variable.handle
    return handle if tf.executing_eagerly() else tf.compat.v1.get_default_graph().capture(handle)
