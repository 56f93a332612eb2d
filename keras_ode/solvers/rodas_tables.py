"""The numbers of Rosenbrock-Wanner methods, in the form that needs no product with the Jacobian.

Those of Rodas5P have 16 published digits, and those of Rosenbrock23 are combinations of 1 and the square root of 2, rounded to 40
decimals.

References:
    Hairer, Wanner (1996), Solving Ordinary Differential Equations II, section IV.7: the form.
    Steinebach (2023), BIT 63, article 27: Rodas5P.
    Shampine, Reichelt (1997), SIAM J. Sci. Comput. 18(1), 1-22: Rosenbrock23.
"""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class RosenbrockTableau:
    """The coefficients of a Rosenbrock-Wanner method of `s` stages.

    With the Jacobian `J` and the time derivative `T` of `f` at `(t, y)`, stage i solves one linear system:

        (I / (gamma h) - J) u_i = f(t + alpha[i] h, y + sum_j a[i][j] u_j) + sum_j (c[i][j] / h) u_j + gammas[i] h T

    The step ends at `y + sum_i m[i] u_i`, its estimated error is `sum_i e[i] u_i`, and within the step

        y(t + theta h) = (1 - theta) y + theta (y_new + (1 - theta) (K_0 + theta (K_1 + theta (K_2 + ...))))

    where `K_l = sum_i dense[l][i] u_i`. Coefficients are kept as `Fraction`.

    Args:
        gamma: The diagonal coefficient, the same for all stages.
        alpha: `s` nodes.
        a: Strictly lower triangular rows: row i has i entries.
        c: Strictly lower triangular rows: row i has i entries.
        gammas: `s` factors of the time derivative.
        m: `s` weights of the step.
        e: `s` weights of the error estimate.
        order: Order of the method.
        error_order: The power of the step size that the error estimate follows.
        dense: Rows of `s` weights, for the interpolant.
        dense_order: Order of the interpolant: its error within the step is O(h^(dense_order + 1)).

    Raises:
        ValueError: If the lengths do not agree.

    Reference:
        Hairer, Wanner (1996), Solving Ordinary Differential Equations II, sections IV.7 and VI.4.
    """

    gamma: Fraction | int | str
    alpha: tuple
    a: tuple
    c: tuple
    gammas: tuple
    m: tuple
    e: tuple
    order: int
    error_order: int
    dense: tuple
    dense_order: int

    def __post_init__(self):
        object.__setattr__(self, "gamma", Fraction(self.gamma))
        for name in ("alpha", "gammas", "m", "e"):
            object.__setattr__(self, name, tuple(map(Fraction, getattr(self, name))))
        for name in ("a", "c", "dense"):
            object.__setattr__(self, name, tuple(tuple(map(Fraction, row)) for row in getattr(self, name)))
        stages = len(self.alpha)
        for name in ("gammas", "m", "e"):
            _check_length(f"`{name}`", getattr(self, name), stages)
        for name in ("a", "c"):
            _check_length(f"`{name}`", getattr(self, name), stages)
            for i, row in enumerate(getattr(self, name)):
                _check_length(f"Row {i} of `{name}`", row, i)
        for i, row in enumerate(self.dense):
            _check_length(f"Row {i} of `dense`", row, stages)


def _check_length(name, row, expected):
    if len(row) != expected:
        raise ValueError(f"{name} must have {expected} entries. Received {len(row)}.")


# fmt: off
RODAS5P = RosenbrockTableau(
    order=5,
    error_order=5,
    dense_order=4,
    gamma="0.21193756319429014",
    alpha=(0, "0.6358126895828704", "0.4095798393397535", "0.9769306725060716", "0.4288403609558664", 1, 1, 1),
    a=(
        (),
        (3,),
        ("2.849394379747939", "0.45842242204463923"),
        ("-6.954028509809101", "2.489845061869568", "-10.358996098473584"),
        ("2.8029986275628964", "0.5072464736228206", "-0.3988312541770524", "-0.04721187230404641"),
        (
            "-7.502846399306121", "2.561846144803919", "-11.627539656261098", "-0.18268767659942256",
            "0.030198172008377946",
        ),
        (
            "-7.502846399306121", "2.561846144803919", "-11.627539656261098", "-0.18268767659942256",
            "0.030198172008377946", 1,
        ),
        (
            "-7.502846399306121", "2.561846144803919", "-11.627539656261098", "-0.18268767659942256",
            "0.030198172008377946", 1, 1,
        ),
    ),
    c=(
        (),
        ("-14.155112264123755",),
        ("-17.97296035885952", "-2.859693295451294"),
        ("147.12150275711716", "-1.41221402718213", "71.68940251302358"),
        ("165.43517024871676", "-0.4592823456491126", "42.90938336958603", "-5.961986721573306"),
        (
            "24.854864614690072", "-3.0009227002832186", "47.4931110020768", "5.5814197821558125",
            "-0.6610691825249471",
        ),
        (
            "30.91273214028599", "-3.1208243349937974", "77.79954646070892", "34.28646028294783",
            "-19.097331116725623", "-28.087943162872662",
        ),
        (
            "37.80277123390563", "-3.2571969029072276", "112.26918849496327", "66.9347231244047",
            "-40.06618937091002", "-54.66780262877968", "-9.48861652309627",
        ),
    ),
    gammas=(
        "0.21193756319429014", "-0.42387512638858027", "-0.3384627126235924", "1.8046452872882734",
        "2.325825639765069", 0, 0, 0,
    ),
    m=(
        "-7.502846399306121", "2.561846144803919", "-11.627539656261098", "-0.18268767659942256",
        "0.030198172008377946", 1, 1, 1,
    ),
    e=(0, 0, 0, 0, 0, 0, 0, 1),
    dense=(
        (
            "25.948786856663858", "-2.5579724845846235", "10.433815404888879", "-2.3679251022685204",
            "0.524948541321073", "1.1241088310450404", "0.4272876194431874", "-0.17202221070155493",
        ),
        (
            "-9.91568850695171", "-0.9689944594115154", "3.0438037242978453", "-24.495224566215796",
            "20.176138334709044", "15.98066361424651", "-6.789040303419874", "-6.710236069923372",
        ),
        (
            "11.419903575922262", "2.8879645146136994", "72.92137995996029", "80.12511834622643",
            "-52.072871366152654", "-59.78993625266729", "-0.15582684282751913", "4.883087185713722",
        ),
    ),
)

# The last stage evaluates `f` at the end of the step, which is the first point of the next step.
ROSENBROCK23 = RosenbrockTableau(
    order=2,
    error_order=3,
    dense_order=2,
    gamma="0.2928932188134524755991556378951509607152",
    alpha=(0, "1/2", 1),
    a=(
        (),
        ("1.7071067811865475244008443621048490392848",),
        ("3.4142135623730950488016887242096980785697", "3.4142135623730950488016887242096980785697"),
    ),
    c=(
        (),
        ("-3.4142135623730950488016887242096980785697",),
        ("-6.8284271247461900976033774484193961571393", "-25.3137084989847603904135097936775846285574"),
    ),
    gammas=("0.2928932188134524755991556378951509607152", 0, "-0.2928932188134524755991556378951509607152"),
    m=("3.4142135623730950488016887242096980785697", "3.4142135623730950488016887242096980785697", 0),
    e=(
        "0.5690355937288491748002814540349496797616", "3.0808802290397617154683553908763647452363",
        "0.5690355937288491748002814540349496797616",
    ),
    dense=((0, "-8.2426406871192851464050661726290942357090", 0),),
)
# fmt: on
