"""Stiff problems with reference values: Mazzia, Magherini (2008), Test Set for Initial Value Problem Solvers, University of Bari.

States are `[..., D]`, in float64.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf


class Problem(NamedTuple):
    dynamics: Any
    y0: list
    end: float
    reference: list
    atol: float = 1.0  # how small a value is of no interest, times the relative tolerance


def robertson(t, y, rates=(0.04, 3e7, 1e4)):
    a, b, c = tf.unstack(y, axis=-1)
    slow, fast, back = tf.unstack(rates, num=3, axis=-1) if tf.is_tensor(rates) else rates
    first, second, third = slow * a, fast * b * b, back * b * c
    return tf.stack([third - first, first - second - third, second], axis=-1)


def hires(t, y):
    a, b, c, d, e, f, g, h = tf.unstack(y, axis=-1)
    joined = 280 * f * h
    return tf.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -joined + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            joined - 1.81 * g,
            -joined + 1.81 * g,
        ],
        axis=-1,
    )


def oregonator(t, y):
    a, b, c = tf.unstack(y, axis=-1)
    return tf.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], axis=-1)


def van_der_pol(t, y):
    """With mu = 1000, in units of time that make its period about 1.6."""
    a, b = tf.unstack(y, axis=-1)
    return tf.stack([b, ((1 - a * a) * b - a) * 1e6], axis=-1)


# Of each reaction of the pollution problem the rate, what it takes and what it makes; substances are numbered from one.
_REACTIONS = [
    (0.35, [1], [2, 3]), (26.6, [2, 4], [1]), (12300.0, [5, 2], [6, 1]), (0.00086, [7], [5, 5, 8]), (0.00082, [7], [8]),
    (15000.0, [7, 6], [5, 8]), (0.00013, [9], [10, 5, 8]), (24000.0, [9, 6], [11]), (16500.0, [11, 2], [1, 10, 12]),
    (9000.0, [11, 1], [13]), (0.022, [13], [11, 1]), (12000.0, [10, 2], [14, 1]), (1.88, [14], [7, 5]),
    (16300.0, [1, 6], [15]), (4.8e6, [3], [4]), (0.00035, [4], [16]), (0.0175, [4], [3]), (1e8, [16], [6, 6]),
    (4.44e11, [16], [3]), (1240.0, [17, 6], [5, 18]), (2.1, [19], [2]), (5.78, [19], [1, 3]), (0.0474, [1, 4], [19]),
    (1780.0, [19, 1], [20]), (3.12, [20], [1, 19]),
]  # fmt: skip


def pollution(t, y):
    substances = tf.unstack(y, axis=-1)
    change = [tf.zeros_like(substances[0])] * 20
    for rate, taken, made in _REACTIONS:
        speed = rate * math.prod(substances[i - 1] for i in taken)
        for i in taken:
            change[i - 1] -= speed
        for i in made:
            change[i - 1] += speed
    return tf.stack(change, axis=-1)


PROBLEMS = {
    "robertson": Problem(
        robertson, [1.0, 0, 0], 1e11, [0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050], 1e-6
    ),
    "hires": Problem(
        hires,
        [1.0, 0, 0, 0, 0, 0, 0, 0.0057],
        321.8122,
        [
            0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2,
            0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2,
        ],
        1e-3,
    ),
    "oregonator": Problem(oregonator, [1.0, 2, 3], 360.0, [0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3]),
    "van_der_pol": Problem(van_der_pol, [2.0, 0], 2.0, [0.1706167732170469e1, -0.8928097010247975], 1e-2),
    "pollution": Problem(
        pollution,
        [0, 0.2, 0, 0.04, 0, 0, 0.1, 0.3, 0.01, 0, 0, 0, 0, 0, 0, 0, 0.007, 0, 0, 0],
        60.0,
        [
            0.5646255480022769e-01, 0.1342484130422339e00, 0.4139734331099427e-08, 0.5523140207484359e-02,
            0.2018977262302196e-06, 0.1464541863493966e-06, 0.7784249118997964e-01, 0.3245075353396018e00,
            0.7494013383880406e-02, 0.1622293157301561e-07, 0.1135863833257075e-07, 0.2230505975721359e-02,
            0.2087162882798630e-03, 0.1396921016840158e-04, 0.8964884856898295e-02, 0.4352846369330103e-17,
            0.6899219696263405e-02, 0.1007803037365946e-03, 0.1772146513969984e-05, 0.5682943292316392e-04,
        ],
        1e-3,
    ),
}  # fmt: skip
