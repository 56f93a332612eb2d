"""The numbers of singly diagonally implicit Runge-Kutta methods whose first stage is explicit.

Those of Kvaerno3 are formulas in gamma, which is a root of `x^3 - 3 x^2 + 3 x / 2 - 1/6`; they are rounded to 40
decimals. Those of Kvaerno5 have 17 published digits, and KenCarp4 has the published rationals.

References:
    Kvaerno (2004), BIT 44(3), 489-502: Kvaerno3 and Kvaerno5.
    Kennedy, Carpenter (2003), Appl. Numer. Math. 44(1-2), 139-181: KenCarp4, which is ARK4(3)6L[2]SA there.
"""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class ESDIRKTableau:
    """The coefficients of an implicit method of `s` stages, with the same diagonal coefficient but in the first.

    Stage i is `k_i = f(t + c[i] h, y + h sum_j a[i][j] k_j)`, and the step ends at `y + h sum_i b[i] k_i`. All methods
    here are stiffly accurate: the last row of `a` is `b`, so that the last stage is `f(t + h, y_new)`.

    An additive method integrates `f + g`, the first implicitly and the second explicitly: stage i of both is evaluated
    at `y + h sum_j (a[i][j] f_j + a_explicit[i][j] g_j)`, and `b`, `b_error` and `dense` weigh `f_i + g_i`. Coefficients
    are kept as `Fraction`.

    Args:
        gamma: The diagonal coefficient of all stages but the first, whose own is 0.
        c: `s` nodes.
        a: Lower triangular rows: row i has i + 1 entries, the last on the diagonal.
        b: `s` weights.
        b_error: `b` less the weights of the embedded method.
        order: Order of the method.
        error_order: The power of the step size that the error estimate follows.
        a_explicit: Strictly lower triangular rows of the explicit part: row i has i entries.
        dense: In row i the coefficients of theta, theta^2, ... that weigh stage i in the interpolant.
        dense_order: Order of the interpolant: its error within the step is O(h^(dense_order + 1)).

    Raises:
        ValueError: If the lengths do not agree.

    Reference:
        Kennedy, Carpenter (2003), Appl. Numer. Math. 44(1-2), 139-181.
    """

    gamma: Fraction | int | str
    c: tuple
    a: tuple
    b: tuple
    b_error: tuple
    order: int
    error_order: int
    a_explicit: tuple = ()
    dense: tuple = ()
    dense_order: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "gamma", Fraction(self.gamma))
        for name in ("c", "b", "b_error"):
            object.__setattr__(self, name, tuple(map(Fraction, getattr(self, name))))
        for name in ("a", "a_explicit", "dense"):
            object.__setattr__(self, name, tuple(tuple(map(Fraction, row)) for row in getattr(self, name)))
        stages = len(self.c)
        for name in ("a", "b", "b_error"):
            _check_length(f"`{name}`", getattr(self, name), stages)
        for i, row in enumerate(self.a):
            _check_length(f"Row {i} of `a`", row, i + 1)
        for i, row in enumerate(self.a_explicit):
            _check_length(f"Row {i} of `a_explicit`", row, i)
        for name in ("a_explicit", "dense"):
            if getattr(self, name):
                _check_length(f"`{name}`", getattr(self, name), stages)


def _check_length(name, row, expected):
    if len(row) != expected:
        raise ValueError(f"{name} must have {expected} entries. Received {len(row)}.")


# fmt: off
KVAERNO3 = ESDIRKTableau(
    order=3,
    error_order=3,
    gamma="0.4358665215084589994160194511935568425293",
    c=(0, "0.8717330430169179988320389023871136850586", 1, 1),
    a=(
        (0,),
        ("0.4358665215084589994160194511935568425293", "0.4358665215084589994160194511935568425293"),
        (
            "0.4905633884217805706284679584665446902307", "0.0735700900697604299555125903398984672400",
            "0.4358665215084589994160194511935568425293",
        ),
        (
            "0.3088099699767465233481624698867005109200", "1.4905633884217805706284679584665446902307",
            "-1.2352398799069860933926498795468020436800", "0.4358665215084589994160194511935568425293",
        ),
    ),
    b=(
        "0.3088099699767465233481624698867005109200", "1.4905633884217805706284679584665446902307",
        "-1.2352398799069860933926498795468020436800", "0.4358665215084589994160194511935568425293",
    ),
    b_error=(
        "-0.1817534184450340472803054885798441793107", "1.4169932983520201406729553681266462229908",
        "-1.6711064014154450928086693307403588862093", "0.4358665215084589994160194511935568425293",
    ),
)

KVAERNO5 = ESDIRKTableau(
    order=5,
    error_order=5,
    gamma="0.26",
    c=(0, "0.52", "1.23033320996790809", "0.89576598435007589", "0.43639360985864758", 1, 1),
    a=(
        (0,),
        ("0.26", "0.26"),
        ("0.13", "0.84033320996790809", "0.26"),
        ("0.22371961478320505", "0.47675532319799699", "-0.06470895363112615", "0.26"),
        ("0.16648564323248321", "0.10450018841591720", "0.03631482272098715", "-0.13090704451073998", "0.26"),
        ("0.13855640231268224", 0, "-0.04245337201752043", "0.02446657898003141", "0.61943039072480676", "0.26"),
        (
            "0.13659751177640291", 0, "-0.05496908796538376", "-0.04118626728321046", "0.62993304899016403",
            "0.06962479448202728", "0.26",
        ),
    ),
    b=(
        "0.13659751177640291", 0, "-0.05496908796538376", "-0.04118626728321046", "0.62993304899016403",
        "0.06962479448202728", "0.26",
    ),
    b_error=(
        "-0.00195889053627933", 0, "-0.01251571594786333", "-0.06565284626324187", "0.01050265826535727",
        "-0.19037520551797272", "0.26",
    ),
)

KENCARP4 = ESDIRKTableau(
    order=4,
    error_order=4,
    dense_order=3,
    gamma="1/4",
    c=(0, "1/2", "83/250", "31/50", "17/20", 1),
    a=(
        (0,),
        ("1/4", "1/4"),
        ("8611/62500", "-1743/31250", "1/4"),
        ("5012029/34652500", "-654441/2922500", "174375/388108", "1/4"),
        ("15267082809/155376265600", "-71443401/120774400", "730878875/902184768", "2285395/8070912", "1/4"),
        ("82889/524892", 0, "15625/83664", "69875/102672", "-2260/8211", "1/4"),
    ),
    a_explicit=(
        (),
        ("1/2",),
        ("13861/62500", "6889/62500"),
        ("-116923316275/2393684061468", "-2731218467317/15368042101831", "9408046702089/11113171139209"),
        (
            "-451086348788/2902428689909", "-2682348792572/7519795681897", "12662868775082/11960479115383",
            "3355817975965/11060851509271",
        ),
        (
            "647845179188/3216320057751", "73281519250/8382639484533", "552539513391/3454668386233",
            "3354512671639/8306763924573", "4040/17871",
        ),
    ),
    b=("82889/524892", 0, "15625/83664", "69875/102672", "-2260/8211", "1/4"),
    b_error=("31666707/9881966720", 0, "-256875/105007616", "-2768025/128864768", "169839/3864644", "-5247/225920"),
    dense=(
        ("6943876665148/7220017795957", "-54480133/30881146", "6818779379841/7100303317025"),
        (0, 0, 0),
        ("7640104374378/9702883013639", "-11436875/14766696", "2173542590792/12501825683035"),
        ("-20649996744609/7521556579894", "174696575/18121608", "-31592104683404/5083833661969"),
        ("8854892464581/2390941311638", "-12120380/966161", "61146701046299/7138195549469"),
        ("-11397109935349/6675773540249", "3843/706", "-17219254887155/4939391667607"),
    ),
)
# fmt: on
