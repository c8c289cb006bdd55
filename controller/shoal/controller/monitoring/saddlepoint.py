"""Log tail probability of a quadratic statistic, accurate far into the tail.

scipy's ``ncx2.logsf`` is minus infinity from about p = 1e-16 on and its noncentral F has no log
tail at all, while a fleet's budget needs p = 1e-9 and a heatmap orders values far below it.
The saddlepoint formula of Lugannani and Rice has the far tail in closed form. Where scipy
gives a value (p from 0.1 to 1e-9, 1 to 20 degrees of freedom, noncentrality 0 to 500),
this is 0 to 9 % larger, the conservative side; 3 % below two degrees of freedom near p = 1e-3.

Source: Lugannani & Rice (1980), Adv. Appl. Prob. 12; Butler (2007), Saddlepoint Approximations.
"""

import numpy as np
import numpy.typing as npt
from scipy import special

F64 = npt.NDArray[np.float64]

#: Degrees of freedom of an exactly known scale: a chi-squared over them is 1 in float64.
EXACT = 1e7


def log_tail(x: F64, freedom: F64, noncentral: F64, spread: F64) -> F64:
    """Natural log of P(X > x · Y / spread): X noncentral chi-squared, Y chi-squared, independent.

    x           the statistic, on X's scale; zero or more
    freedom     degrees of freedom of X, above 0, not necessarily whole
    noncentral  of X, zero or more
    spread      degrees of freedom of Y, the estimate of the statistic's scale. ``EXACT`` gives the
                noncentral chi-squared, less the noncentral F

    All broadcast against one another. The probability is that of a sum, X - c·Y > 0 with
    c = x / spread, whose saddlepoint is the root of a quadratic.

    >>> two_sided = log_tail(np.array([1.96**2]), np.array(1.0), np.array(0.0), np.array(EXACT))
    >>> round(float(np.exp(two_sided[0])), 3)
    0.05
    """
    d = np.minimum(spread, EXACT)
    c = np.maximum(x, 1e-9) / d
    y = _saddlepoint(c, freedom, noncentral, d)
    s, g = (1 - y) / 2, 1 + (1 - y) * c
    cumulant = noncentral * s / y - freedom / 2 * np.log(y) - d / 2 * np.log(g)
    curvature = 4 * noncentral / y**3 + 2 * freedom / y**2 + 2 * d * (c / g) ** 2
    w = np.sign(s) * np.sqrt(np.maximum(-2 * cumulant, 0))
    at_mean = np.abs(w) < 1e-3
    far = _lugannani_rice(np.where(at_mean, 1, w), np.where(at_mean, 1, s * np.sqrt(curvature)))
    return np.where(at_mean, _middle(c, freedom, noncentral, d), far)


def _saddlepoint(c: F64, freedom: F64, noncentral: F64, d: F64) -> F64:
    a = c * (freedom + d)
    b = freedom * (1 + c) - noncentral * c
    return (b + np.sqrt(b * b + 4 * a * noncentral * (1 + c))) / (2 * a)


def _lugannani_rice(w: F64, u: F64) -> F64:
    # Above the mean, the normal density at w is factored out so that nothing underflows. Below the
    # mean p is above 0.5, and direct arithmetic suffices.
    mills = np.sqrt(np.pi / 2) * special.erfcx(np.maximum(w, -5) / np.sqrt(2))
    log_density = -(w**2) / 2 - np.log(2 * np.pi) / 2
    above = log_density + np.log(np.maximum(mills + 1 / u - 1 / w, 1e-300))
    below = special.ndtr(-w) + np.exp(log_density) * (1 / u - 1 / w)
    return np.where(w > 0, above, np.log(np.clip(below, 1e-300, 1)))


def _middle(c: F64, freedom: F64, noncentral: F64, d: F64) -> F64:
    second = 4 * noncentral + 2 * freedom + 2 * d * c**2
    third = 24 * noncentral + 8 * freedom - 8 * d * c**3
    return np.log(0.5 - third / (6 * np.sqrt(2 * np.pi) * second**1.5))
