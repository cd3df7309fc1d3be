"""Statistics room: how sure a number is. Scores per picture in; intervals, paired differences and words out.

Scores come from `evaluate.benchmark` (a row per picture) or from repeated trainings (a row per seed). Results go to
tables, figures and the scorecard of `claims.py`. Nothing here knows a model or a picture.

Which interval for a mean was decided by simulation: per cent of 4,000 draws whose 95 % interval held the true mean, BCa
with 2,999 resamples against Student's t (relative length of BCa in the last column).

| pictures                  | normal scores BCa / t | skewed (exponential) BCa / t | length BCa / t |
|---------------------------|-----------------------|------------------------------|----------------|
| 5 (Set5)                  | 84.0 / 95.1           | 78.2 / 87.6                  | 0.64           |
| 14 (Set14)                | 92.4 / 95.8           | 89.8 / 90.9                  | 0.89           |
| 30                        | 94.0 / 95.3           | 91.7 / 92.0                  | 0.95           |
| 60                        | 95.0 / 95.7           | 92.9 / 93.2                  | 0.97           |
| 100 (B100, Urban100)      | 94.2 / 94.7           | 94.5 / 95.0                  | 0.98           |

The bootstrap is too sure of itself on few pictures: five resampled values cannot show a spread they do not hold. So
below `SMALL_SAMPLE` pictures the interval is Student's t, from there on BCa, which follows skewed scores. With few and
strongly skewed scores neither reaches 95 %: read an interval over Set5 with that in mind.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import scipy  # scipy.stats is loaded when first used: half a second that scoring one picture need not wait for
from numpy.typing import ArrayLike

SMALL_SAMPLE = 30
"""Below this many values a mean gets Student's t interval, from here on BCa (measured, see above)."""

_CELLS_AT_ONCE = 4_000_000  # resampled values held in memory together: 32 MB


@dataclass(frozen=True)
class Interval:
    """A number and the interval it lies in; `mean` is the estimate itself, in the unit of the scores.

    Ends that are not known are NaN: such an interval excludes nothing and is printed as "0.28 (no interval)".
    """

    low: float
    high: float
    mean: float
    n: int
    level: float = 0.95
    method: str = "BCa"

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return self.low > value or self.high < value

    def __str__(self) -> str:
        digits = _digits(self) if self._is_known else 2
        return f"{self:z.{digits}f}"  # z: a difference of -0.001 is printed as 0.00, not as -0.00

    def __format__(self, spec: str) -> str:
        """`f"{interval:.4f}"` writes the mean and both ends so; without a format, as many digits as mean something."""
        if not spec:
            return str(self)
        ends = f"[{self.low:{spec}}, {self.high:{spec}}]" if self._is_known else "(no interval)"
        return f"{self.mean:{spec}} {ends}"

    @property
    def _is_known(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


@dataclass(frozen=True)
class PairedResult:
    """How much better A scores than B on the same pictures."""

    interval: Interval
    """mean of A - B over pictures, with its interval"""
    p_value: float
    """two-sided Wilcoxon signed-rank test; 1 when A and B agree everywhere"""
    wins: int
    losses: int
    ties: int
    differences: pd.Series = field(repr=False, compare=False)
    """A - B, a value per picture"""
    names: tuple[str, str] = ("A", "B")
    unit: str = "dB"

    @property
    def n(self) -> int:
        """Number of pictures."""
        return self.interval.n

    def verdict(self, noise: float = 0.0) -> str:
        """The result in words: "A is better by 0.12 dB [0.08, 0.16]", "within noise: ...", "no difference".

        Args:
            noise: a difference that means nothing, in the unit of the scores, for example what another training seed
                changes. The whole interval has to lie beyond it. At 0 only chance over pictures is asked about.

        Raises:
            ValueError: `noise` is negative or not finite.
        """
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise is {noise}, expected a finite difference >= 0 in {self.unit or 'score units'}")
        if self.wins == self.losses == 0:
            return "no difference"
        a, b = self.names
        if self.interval.low > noise:
            return f"{a} is better by {_with_unit(self.interval, self.unit)}"
        if self.interval.high < -noise:
            return f"{b} is better by {_with_unit(_mirrored(self.interval), self.unit)}"
        margin = f", noise {noise:g} {self.unit}".rstrip() if noise else ""
        return f"within noise: {a} - {b} = {_with_unit(self.interval, self.unit)}{margin}"

    def line(self, noise: float = 0.0) -> str:
        """The verdict with everything a reader needs to judge it, for printing under a table."""
        return (
            f"{self.verdict(noise)} ({self.interval.level:.0%} {self.interval.method} interval over {self.n} pictures; "
            f"{self.wins} better, {self.losses} worse, {self.ties} equal; Wilcoxon p = {self.p_value:.2g})"
        )


@dataclass(frozen=True)
class SeedEffect:
    """A difference measured with several trainings, and the two questions one can ask of it."""

    over_pictures: Interval
    """seeds averaged first: would it hold on other pictures?"""
    over_seeds: Interval
    """pictures averaged first: would it hold for another training?"""

    def verdict(self, noise: float = 0.0) -> str:
        """ "helps", "hurts" or "within noise": an effect counts only if both intervals lie beyond `noise`."""
        if min(self.over_pictures.low, self.over_seeds.low) > noise:
            return "helps"
        if max(self.over_pictures.high, self.over_seeds.high) < -noise:
            return "hurts"
        return "within noise"


def bootstrap_mean(values: ArrayLike, level: float = 0.95, n_resamples: int = 9999, seed: int = 0) -> Interval:
    """Mean of scores with an interval for other draws of the same kind of picture.

    From `SMALL_SAMPLE` values on: bias-corrected and accelerated bootstrap (Efron 1987, `scipy.stats.bootstrap`). Below
    it: Student's t, for the reason in the table above. Equal values have an interval of no width, `method="constant"`.

    Args:
        values: (n,) scores, a picture each; a Series is welcome, its index then names the culprits in errors.
        level: of confidence, between 0 and 1.
        n_resamples: bootstrap resamples.
        seed: of the resampling, so that a table can be printed twice.

    Raises:
        ValueError: fewer than two values; a NaN; an infinite value, which is the PSNR of identical pictures and would
            make the mean infinite: take such pictures out with `split_infinite` and say how many there were.
    """
    series = _checked(values)
    _check_level(level)
    x = series.to_numpy()
    n, mean = len(x), float(x.mean())
    if np.ptp(x) <= 1e-12 * max(1.0, abs(mean)):  # rounding, not spread: scipy would answer NaN
        return Interval(mean, mean, mean, n, level, "constant")
    if n < SMALL_SAMPLE:
        half = float(scipy.stats.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
        return Interval(mean - half, mean + half, mean, n, level, "Student t")
    found = scipy.stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=level,
        n_resamples=n_resamples,
        batch=max(1, _CELLS_AT_ONCE // n),
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), mean, n, level, "BCa")


def paired_difference(
    a: ArrayLike | pd.DataFrame,
    b: ArrayLike | pd.DataFrame,
    names: tuple[str, str] | None = None,
    level: float = 0.95,
    *,
    column: str = "psnr_y",
    unit: str | None = None,
    n_resamples: int = 9999,
    seed: int = 0,
) -> PairedResult:
    """Compare two models on the same pictures, picture by picture.

    Pictures differ by 10 dB and models by 0.1 dB, so two separate intervals always overlap; differences tell.

    Args:
        a, b: scores of the two, higher is better: tables of `evaluate.benchmark` (a column `image`, or images as
            index), Series with images as index, or plain (n,) arrays in one order.
        names: how the verdict calls the two, default ("A", "B").
        level: of confidence.
        column: which score of a table.
        unit: printed after differences; by default "dB" unless `column` is an SSIM.
        n_resamples, seed: of the bootstrap, see `bootstrap_mean`.

    Raises:
        ValueError: the lists of images differ (they are named) or hold doubles; fewer than two images; NaN or infinite.
    """
    first, second = _scores(a, column), _scores(b, column)
    both_named = _is_named(a) and _is_named(b)
    differences = _checked(first) - _matched(_checked(second), first, both_named)
    if unit is None:
        unit = "" if "ssim" in column else "dB"
    return PairedResult(
        interval=bootstrap_mean(differences, level, n_resamples, seed),
        p_value=_wilcoxon(differences.to_numpy()),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        differences=differences,
        names=tuple(names) if names else ("A", "B"),
        unit=unit,
    )


def mean_over_seeds(differences: ArrayLike, level: float = 0.95, n_resamples: int = 9999, seed: int = 0) -> SeedEffect:
    """Effect of a change, from differences measured on the same pictures with several training seeds.

    Pooling seeds x pictures as though independent would make a few trainings look like hundreds. The two sources of
    chance are kept apart instead; three seeds give a wide interval because three seeds tell little.

    Args:
        differences: (seeds, pictures), with the change minus without it; at least two of each.
        level, n_resamples, seed: see `bootstrap_mean`.

    Raises:
        ValueError: not a table of at least 2 x 2 finite numbers.
    """
    table = np.asarray(differences, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"differences have shape {table.shape}, expected (seeds, pictures) with at least two of each")
    return SeedEffect(
        over_pictures=bootstrap_mean(table.mean(axis=0), level, n_resamples, seed),
        over_seeds=bootstrap_mean(table.mean(axis=1), level, n_resamples, seed),
    )


def contrast_of_trainings(groups: Mapping[str, ArrayLike], a: str, b: str, level: float = 0.95) -> Interval:
    """Mean of group `a` minus mean of group `b`, with an interval for other trainings of the same kinds.

    Two trainings of a kind say little about their spread, several kinds together say more: the variance within groups
    is pooled over all of them (the error of a one-way analysis of variance), so that even a kind trained once can be
    compared. That takes the spread for equal in all kinds.

    Args:
        groups: kind -> one score per training.
        a, b: two of the kinds.
        level: of confidence.

    Raises:
        ValueError: no kind was trained twice; an empty group; `a` or `b` is none of them.
    """
    scores = {name: np.asarray(values, dtype=float).reshape(-1) for name, values in groups.items()}
    _check_level(level)
    if absent := [name for name in (a, b) if not len(scores.get(name, ()))]:
        raise ValueError(f"no trainings of {absent[0]!r}, expected some: there are those of {_listed(list(scores))}")
    freedom = sum(len(x) - 1 for x in scores.values() if len(x))
    if not freedom:
        raise ValueError(f"each of {len(scores)} kinds was trained once, expected one twice: no spread is known")
    _checked(pd.Series(np.concatenate(list(scores.values())), np.repeat(list(scores), list(map(len, scores.values())))))
    variance = sum(float(((x - x.mean()) ** 2).sum()) for x in scores.values() if len(x)) / freedom
    n, m = len(scores[a]), len(scores[b])
    mean = float(scores[a].mean() - scores[b].mean())
    half = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance * (1 / n + 1 / m))
    return Interval(mean - half, mean + half, mean, n + m, level, f"Student t, {freedom} degrees of freedom")


def rank_correlation(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> Interval:
    """Spearman's rank correlation with an interval; `Interval.mean` holds the correlation, -1 to 1.

    The interval is the one of Bonett and Wright (Psychometrika 65, 2000): on the scale of Fisher's z with variance
    (1 + rho**2 / 2) / (n - 3). For a perfect order z is infinite and the interval would have no width however few the
    points; there the inner bound is that of the nearest imperfect order, one pair of neighbours swapped.

    Raises:
        ValueError: unequal lengths; fewer than four points; NaN or infinite values; all x or all y equal.
    """
    _check_level(level)
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 4:
        raise ValueError(f"x and y have shapes {first.shape} and {second.shape}, expected two equal lists of 4 or more")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("x or y holds NaN or infinite values, which have no rank: leave those points out and say so")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise ValueError("all x or all y are equal: there is no order to correlate")
    n = len(first)
    rho = round(float(scipy.stats.spearmanr(first, second).statistic), 12)  # a perfect order comes out as 1 - 1e-16
    nearest = 1 - 12 / (n * (n**2 - 1))
    inner = float(np.clip(rho, -nearest, nearest))
    half = scipy.stats.norm.ppf((1 + level) / 2) * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-half, half]))
    return Interval(min(float(low), rho), max(float(high), rho), rho, n, level, "Bonett-Wright")


def split_infinite(scores: pd.Series) -> tuple[pd.Series, list]:
    """Separate the pictures a model reproduced exactly (infinite PSNR) from those that have a mean.

    Returns:
        The finite scores and the labels of the others, to be reported beside the mean, never averaged into it.
    """
    exact = np.isposinf(scores.to_numpy(dtype=float))
    return scores[~exact], list(scores.index[exact])


def _scores(values: ArrayLike | pd.DataFrame, column: str) -> pd.Series:
    """One column of a table of scores, indexed by image; anything else as a Series."""
    if not isinstance(values, pd.DataFrame):
        return values if isinstance(values, pd.Series) else pd.Series(np.asarray(values))
    if column not in values.columns:
        raise ValueError(f"no column {column!r} in the scores, there are: {', '.join(map(str, values.columns))}")
    return values.set_index("image")[column] if "image" in values.columns else values[column]


def _is_named(values: object) -> bool:
    return isinstance(values, pd.Series | pd.DataFrame)


def _matched(b: pd.Series, a: pd.Series, both_named: bool) -> pd.Series:
    """`b` in the order of `a`, or an error that names the images only one of them has."""
    if not both_named:
        if len(a) != len(b):
            raise ValueError(f"{len(a)} scores against {len(b)}: both models must be scored on the same images")
        return pd.Series(b.to_numpy(), index=a.index)
    for which, series in (("first", a), ("second", b)):
        if not series.index.is_unique:
            doubles = series.index[series.index.duplicated()].unique()
            raise ValueError(
                f"the {which} scores hold {_listed(doubles)} more than once: "
                f"were several datasets or scales put together? Compare them one at a time"
            )
    only_a, only_b = a.index.difference(b.index, sort=False), b.index.difference(a.index, sort=False)
    if len(only_a) or len(only_b):
        parts = [f"only in the {which}: {_listed(i)}" for which, i in (("first", only_a), ("second", only_b)) if len(i)]
        raise ValueError(f"the two lists of images differ ({'; '.join(parts)}): score both models on one dataset")
    return b.reindex(a.index)


def _checked(values: ArrayLike) -> pd.Series:
    """Values as a float Series with at least two entries, all finite."""
    series = values if isinstance(values, pd.Series) else pd.Series(np.asarray(values, dtype=float).reshape(-1))
    series = series.astype(float)
    if len(series) < 2:
        raise ValueError(
            f"fewer than two images for an interval: got {len(series)}. One picture says nothing about the next"
        )
    missing, infinite = series.index[series.isna()], series.index[np.isinf(series)]
    if len(missing):
        raise ValueError(f"{len(missing)} of {len(series)} scores are NaN: {_listed(missing)}. Did a model diverge?")
    if len(infinite):
        raise ValueError(
            f"{len(infinite)} of {len(series)} scores are infinite: {_listed(infinite)}. Identical pictures have an "
            f"infinite PSNR and no mean: take them out with split_infinite and report them apart"
        )
    return series


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a confidence between 0 and 1, such as 0.95 (not 95)")


def _wilcoxon(differences: np.ndarray) -> float:
    """p of the signed-rank test; ties between models are ranked with the rest and dropped afterwards (Pratt 1959)."""
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences, zero_method="pratt").pvalue)


def _mirrored(interval: Interval) -> Interval:
    return replace(interval, low=-interval.high, high=-interval.low, mean=-interval.mean)


def _with_unit(interval: Interval, unit: str) -> str:
    mean, bounds = str(interval).split(" ", 1)
    return f"{mean} {unit} {bounds}" if unit else f"{mean} {bounds}"


def _digits(interval: Interval) -> int:
    """Decimals to print: two, or more where the interval is so narrow that two would hide it."""
    size = interval.high - interval.low or abs(interval.mean) or 1.0
    digits = int(np.clip(-math.floor(math.log10(size)), 2, 6))
    nearer = min(abs(interval.low), abs(interval.high))
    if interval.excludes(0) and round(nearer, digits) == 0:  # "[0.00, 0.10]" would look as though it held zero
        digits = max(digits, min(4, -math.floor(math.log10(nearer))))
    return digits


def _listed(labels: Sequence) -> str:
    """The first few labels, and how many more."""
    shown = ", ".join(str(label) for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"
