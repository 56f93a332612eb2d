"""Explicit Runge-Kutta methods: each a table, its interpolant and its source."""

import tensorflow as tf

from keras_ode import tree
from keras_ode.interpolation import CorrectedHermite, CubicHermite
from keras_ode.solvers import dopri8, verner_tables
from keras_ode.solvers.runge_kutta import ExplicitRungeKutta
from keras_ode.solvers.tableau import ButcherTableau


class Euler(ExplicitRungeKutta):
    """Euler's method: order 1, 1 stage, no error estimate.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="euler", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3487

    Reference: Euler (1768), Institutionum calculi integralis I, sec. 2, ch. 7.
    """

    order = 1
    error_order = None
    tableau = ButcherTableau(c=(0,), a=((),), b=(1,))
    interpolant = CubicHermite()


class Midpoint(ExplicitRungeKutta):
    """The midpoint method, with Euler's method embedded: order 2(1), 2 stages.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="midpoint", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Runge (1895), Math. Ann. 46, 167-178.
    """

    order = 2
    error_order = 2
    tableau = ButcherTableau(c=(0, "1/2"), a=((), ("1/2",)), b=(0, 1), b_error=(-1, 1))
    interpolant = CubicHermite()


class Heun(ExplicitRungeKutta):
    """Heun's trapezoidal method, with Euler's method embedded: order 2(1), 2 stages.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="heun", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Heun (1900), Z. Math. Phys. 45, 23-38.
    """

    order = 2
    error_order = 2
    tableau = ButcherTableau(c=(0, 1), a=((), (1,)), b=("1/2", "1/2"), b_error=("-1/2", "1/2"))
    interpolant = CubicHermite()


class Ralston(ExplicitRungeKutta):
    """Ralston's method with the smallest error bound, and Euler's method embedded: order 2(1), 2 stages.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="ralston", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Ralston (1962), Math. Comp. 16(80), 431-437.
    """

    order = 2
    error_order = 2
    tableau = ButcherTableau(c=(0, "2/3"), a=((), ("2/3",)), b=("1/4", "3/4"), b_error=("-3/4", "3/4"))
    interpolant = CubicHermite()


class RK4(ExplicitRungeKutta):
    """Kutta's classical method: order 4, 4 stages, no error estimate.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="rk4", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Kutta (1901), Z. Math. Phys. 46, 435-453.
    """

    order = 4
    error_order = None
    tableau = ButcherTableau(
        c=(0, "1/2", "1/2", 1),
        a=((), ("1/2",), (0, "1/2"), (0, 0, 1)),
        b=("1/6", "1/3", "1/3", "1/6"),
    )
    interpolant = CubicHermite()


class Heun3(ExplicitRungeKutta):
    """Heun's third-order method: order 3, 3 stages, no error estimate.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="heun3", step_size=0.1)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Heun (1900), Z. Math. Phys. 45, 23-38.
    """

    order = 3
    tableau = ButcherTableau(c=(0, "1/3", "2/3"), a=((), ("1/3",), (0, "2/3")), b=("1/4", 0, "3/4"))
    interpolant = CubicHermite()


class Bosh3(ExplicitRungeKutta):
    """Bogacki and Shampine's pair: order 3(2), 4 stages, first same as last.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="bosh3", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Bogacki, Shampine (1989), Appl. Math. Lett. 2(4), 321-325.
    """

    order = 3
    error_order = 3
    tableau = ButcherTableau(
        c=(0, "1/2", "3/4", 1),
        a=((), ("1/2",), (0, "3/4"), ("2/9", "1/3", "4/9")),
        b=("2/9", "1/3", "4/9", 0),
        b_error=("-5/72", "1/12", "1/9", "-1/8"),
    )
    interpolant = CubicHermite()


class Dopri5(ExplicitRungeKutta):
    """Dormand and Prince's pair: order 5(4), 7 stages, first same as last.

    Its interpolant is Shampine's, of order 4.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="dopri5", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference:
        Dormand, Prince (1980), J. Comput. Appl. Math. 6(1), 19-26.
        Shampine (1986), Math. Comp. 46(173), 135-150.
    """

    order = 5
    error_order = 5
    tableau = ButcherTableau(
        c=(0, "1/5", "3/10", "4/5", "8/9", 1, 1),
        a=(
            (),
            ("1/5",),
            ("3/40", "9/40"),
            ("44/45", "-56/15", "32/9"),
            ("19372/6561", "-25360/2187", "64448/6561", "-212/729"),
            ("9017/3168", "-355/33", "46732/5247", "49/176", "-5103/18656"),
            ("35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84"),
        ),
        b=("35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84", 0),
        b_error=("71/57600", 0, "-71/16695", "71/1920", "-17253/339200", "22/525", "-1/40"),
    )
    interpolant = CorrectedHermite(
        order=4,
        corrections=(
            (
                "-12715105075/11282082432", 0, "87487479700/32700410799", "-10690763975/1880347072",
                "701980252875/199316789632", "-1453857185/822651844", "69997945/29380423",
            ),
        ),
    )


class Tsit5(ExplicitRungeKutta):
    """Tsitouras' pair: order 5(4), 7 stages, first same as last.

    The article prints about 16 digits. The coefficients here have 40 decimals and fulfill the order
    conditions to 1e-36. So do those of the interpolant of order 4, which follow from the
    article's 0.1017 and 5/2.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="tsit5", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference: Tsitouras (2011), Comput. Math. Appl. 62(2), 770-775.
    """

    order = 5
    error_order = 5
    tableau = ButcherTableau(
        c=(0, "0.161", "0.327", "0.9", "0.9800255409045096857298102862870245954942", 1, 1),
        a=(
            (),
            ("0.161",),
            ("-0.0084806554923569885444268742502307746751", "0.3354806554923569885444268742502307746751"),
            (
                "2.8971530571054934321304325941929387649249", "-6.3594484899750748431481599123838256259527",
                "4.3622954328695814110177273181908868610278",
            ),
            (
                "5.3258648284392566044288779208405113178365", "-11.7488835640628278777471703397857729618874",
                "7.4955393428898362083046047845643581556587", "-0.0924950663617552492565020793320719161135",
            ),
            (
                "5.8614554429464200286592514869826478903943", "-12.9209693178471092917061186817833593954178",
                "8.1593678985761586431804007945392534851819", "-0.0715849732814009972245305425258297386913",
                "-0.0282690503940683829090030572127122414672",
            ),
            (
                "0.0964607668180652295181673131651287633371", "0.01",
                "0.4798896504144995747752495322905965199130", "1.3790085741037418931922748218568727707565",
                "-3.2900695154360806799010475857113638501157", "2.3247105240997739824153559183987657961091",
            ),
        ),
        b=(
            "0.0964607668180652295181673131651287633371", "0.01", "0.4798896504144995747752495322905965199130",
            "1.3790085741037418931922748218568727707565", "-3.2900695154360806799010475857113638501157",
            "2.3247105240997739824153559183987657961091", 0,
        ),
        b_error=(
            "0.0017800110522257714433785506075395347759", "0.0008164344596567469032236360633546862402",
            "-0.0078808780102619960103147276725263042386", "0.1447110071732629075371651479726351167209",
            "-0.5823571654525552250199376106520421794261", "0.4580821059291869466616365188325542974428",
            "-1/66",
        ),
    )
    interpolant = CorrectedHermite(
        order=4,
        corrections=(
            (
                "-1.0530884977290215572274903025230685499432", "0.1017",
                "2.4906272856512527930835450725881959383487", "-16.5481028892449027183072978622824732490776",
                "47.3795219628192812186815818681988328023080", "-34.8706578614966097362303387759814869416359",
                "5/2",
            ),
        ),
    )


class Dopri8(ExplicitRungeKutta):
    """Dormand and Prince's method, as in DOP853: order 8(5, 3), 12 stages.

    Two embedded formulas of orders 5 and 3 together estimate the error; three
    further stages raise the interpolant to order 7.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="dopri8", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    Reference:
        Prince, Dormand (1981), J. Comput. Appl. Math. 7(1), 67-75.
        Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I,
        sections II.5, II.6 and II.10.
    """

    order = 8
    error_order = 8
    tableau = dopri8.TABLEAU
    b_error_third = dopri8.B_ERROR_THIRD
    interpolant = dopri8.INTERPOLANT

    def error(self, slopes, size):
        """Returns the fifth-order estimate, reduced element by element by its ratio to the third-order estimate."""
        fifth = super().error(slopes, size)
        third = tree.scale(size, tree.weighted_sum([float(b) for b in self.b_error_third], slopes[: len(self.b_error_third)]))
        return tuple(
            tf.math.divide_no_nan(tf.square(e5), tf.sqrt(tf.square(e5) + 0.01 * tf.square(e3)))
            for e5, e3 in zip(fifth, third, strict=True)
        )


class Vern7(ExplicitRungeKutta):
    """Verner's method for tight tolerances in float64: order 7(6), 10 stages, with an interpolant of order 7.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="vern7", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    References:
        Verner (2010), Numerically optimal Runge-Kutta pairs with interpolants, Numer. Algorithms 53, 383-396.
        Verner, coefficients of the "most efficient" pairs, https://www.sfu.ca/~jverner.
    """

    order = error_order = 7
    tableau = verner_tables.VERN7
    interpolant = verner_tables.VERN7_INTERPOLANT


class Vern9(ExplicitRungeKutta):
    """Verner's method for the tightest tolerances in float64: order 9(8), 16 stages, with an interpolant of order 9.

    Example:

    >>> solution = keras_ode.solve(lambda t, y: -y, tf.constant([1.0]), [0.0, 1.0], solver="vern9", rtol=1e-5)
    >>> print(f"{float(solution.ys[-1, 0]):.4f}")
    0.3679

    References:
        Verner (2010), Numerically optimal Runge-Kutta pairs with interpolants, Numer. Algorithms 53, 383-396.
        Verner, coefficients of the "most efficient" pairs, https://www.sfu.ca/~jverner.
    """

    order = error_order = 9
    tableau = verner_tables.VERN9
    interpolant = verner_tables.VERN9_INTERPOLANT
