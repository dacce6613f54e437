"""Repair without training: layers that lose inputs get weights that make the best of the inputs they keep.

A layer computes `y = W x + b` from C columns, of which K stay. Its new weights solve a least-squares problem that
second moments alone decide, taken about the means, with a ridge towards the weights it had:

    W' = argmin  E |W x - W' x_K|^2 + lam |W' - W_K|^2  =  W_K + W_P S_PK (S_KK + lam I)^-1
    b' = b + W mu - W' mu_K

Put in another way, removed columns are predicted from kept ones: `x_P ~ A^T x_K`, `A = (S_KK + lam I)^-1 S_KP`. That
depends on the activations only, so all layers that read them share one factorization; and one predictor over channels
can be applied to every tap of a convolution. Where what comes before was changed already, the inputs are no more what
the weights were made for: then the target is what the unchanged model computes (the cross version), which makes up for
some of that change as well.

Least squares after channels are removed, and targets from the unchanged model: He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks"; Luo et al. 2017, "ThiNet". The size of the ridge: Frantar and Alistarh 2023,
"SparseGPT".

All arithmetic is in float64. `lam = ridge * mean of diag(S_KK)` without dead columns, those that never vary: they
predict nothing and keep their weights.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .definite import as_scatter, damping, solve_damped
from .units import Array, Indices, complement

RIDGE = 1e-3
"""Ridge of the mean diagonal. With samples fewer than ten times the kept columns 1e-2 is safer."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """What kept columns tell about the others: `W' = W[:, kept] + W[:, sources] coefficients`.

    Attributes:
        kept: `[K]`, in the order of the new weight's columns.
        sources: `[s]`, the columns that are made up for: the removed ones; all, in the cross version.
        coefficients: `[s, K]`.
    """

    kept: Indices
    sources: Indices
    coefficients: Array

    def apply(self, weight: npt.ArrayLike) -> Array:
        """New weights `[out, K, *taps]` of a layer with weights `[out, C, *taps]`; all taps share the predictor.

        Cost: out * taps * s * K products.
        """
        full = np.asarray(weight, np.float64)
        more = np.tensordot(full[:, self.sources], self.coefficients, axes=(1, 0))
        new: Array = full[:, self.kept] + np.moveaxis(more, -1, 1)
        return new

    def bias(self, weight: npt.ArrayLike, mean: npt.ArrayLike, current_mean: npt.ArrayLike | None = None) -> Array:
        """What to add to the bias: `W mu - W' mu~` `[out]`.

        Of a convolution the means of a column count at every tap: right where no tap reads padding.

        Args:
            weight: `[out, C, *taps]`, the old ones.
            mean: `[C]`, of the columns before.
            current_mean: `[K]`, of the columns that the new weights read; None: `mean[kept]`.
        """
        full = np.asarray(weight, np.float64)
        gap = np.array(mean, np.float64)
        known = gap[self.kept] if current_mean is None else np.asarray(current_mean, np.float64)
        gap[self.kept] -= known
        gap[self.sources] -= self.coefficients @ known
        change: Array = full.reshape(*full.shape[:2], -1).sum(2) @ gap
        return change


def predictor(scatter: npt.ArrayLike, kept: npt.ArrayLike, ridge: float = RIDGE) -> Predictor:
    """Predict removed columns from kept ones.

    Args:
        scatter: `[C, C]`, sum or mean of `(x - mean)(x - mean)^T`; only proportions matter.
        kept: which columns stay `[K]`.
        ridge: at least 0; see the module. Without one and with dependent columns the least predictor is taken.

    Cost: K^3 / 3 + 2 K^2 (C - K).

    Raises:
        ValueError: the scatter is not square or not finite, `kept` is outside or has a column twice, or `ridge` < 0.
    """
    matrix = as_scatter(scatter)
    stay, leave = complement(kept, len(matrix))
    inner = matrix[np.ix_(stay, stay)]
    solution = solve_damped(inner, damping(inner, ridge), matrix[np.ix_(stay, leave)])
    return Predictor(stay, leave, solution.T)


def predictor_cross(
    cross: npt.ArrayLike, current_scatter: npt.ArrayLike, kept: npt.ArrayLike, ridge: float = RIDGE
) -> Predictor:
    """Predict all columns of the dense model from the kept ones as the current model has them.

        W' = (W C + lam W_K)(G~ + lam I)^-1 = W_K + W (C - E_K G~)(G~ + lam I)^-1

    The second form is what is computed: it is small where little has changed.

    Args:
        cross: `[C, K]`, sum of `(x - mean x)(x~ - mean x~)^T`, dense columns by current ones.
        current_scatter: `[K, K]`, sum of `(x~ - mean x~)(x~ - mean x~)^T` over the same rows.
        kept: `[K]`, which columns of the dense model those of the current one are.
        ridge: see `predictor`.

    Raises:
        ValueError: as `predictor`, and where the shapes do not fit each other.
    """
    products, inner = np.asarray(cross, np.float64), as_scatter(current_scatter)
    stay, _ = complement(kept, len(products))
    if products.shape != (len(products), len(stay)) or inner.shape != (len(stay), len(stay)):
        raise ValueError(f"{len(stay)} columns are kept: a cross scatter {products.shape} and {inner.shape} do not fit")
    if not np.isfinite(products).all():
        raise ValueError("a cross scatter has entries that are not finite")
    damp = damping(inner, ridge)
    gap = products.copy()
    gap[stay] -= inner
    return Predictor(stay, np.arange(len(products)), solve_damped(inner, damp, gap.T).T)


def refit(weight: npt.ArrayLike, scatter: npt.ArrayLike, kept: npt.ArrayLike, ridge: float = RIDGE) -> Array:
    """New weights `[out, K]` of one layer with weights `[out, C]`; see `predictor`, which several layers share."""
    return predictor(scatter, kept, ridge).apply(weight)


def refit_cross(
    weight: npt.ArrayLike,
    cross: npt.ArrayLike,
    current_scatter: npt.ArrayLike,
    kept: npt.ArrayLike,
    ridge: float = RIDGE,
) -> Array:
    """New weights `[out, K]` that make of current inputs what the old made of dense ones; see `predictor_cross`."""
    return predictor_cross(cross, current_scatter, kept, ridge).apply(weight)


def refit_to_targets(
    weight: npt.ArrayLike, products: npt.ArrayLike, scatter: npt.ArrayLike, ridge: float = RIDGE
) -> Array:
    """Weights `[out, K]` with which given inputs make the best of given targets, drawn towards the weights there are.

        W' = (T + lam W)(G + lam I)^-1 = W + (T - W G)(G + lam I)^-1

    The second form is what is computed: it is small where little is to be mended.

    Args:
        weight: `[out, K]`.
        products: `[K, out]`, sum of `(x - mean x)(t - mean t)^T` of inputs x and targets t.
        scatter: `[K, K]`, of the inputs over the same rows.
        ridge: see `predictor`.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or `ridge` < 0.
    """
    known, wanted, inner = np.asarray(weight, np.float64), np.asarray(products, np.float64), as_scatter(scatter)
    if known.shape != wanted.shape[::-1] or len(inner) != len(wanted) or not np.isfinite(wanted).all():
        raise ValueError(f"weights {known.shape}, products {wanted.shape} and a scatter {inner.shape} do not fit")
    gap = wanted - inner @ known.T
    new: Array = known + solve_damped(inner, damping(inner, ridge), gap).T
    return new


def bias_change(
    weight: npt.ArrayLike, new_weight: npt.ArrayLike, mean: npt.ArrayLike, current_mean: npt.ArrayLike
) -> Array:
    """`W mu - W' mu~` `[out]`, for new weights however they were found; `W' = W_K` is plain bias correction.

    Args:
        weight: `[out, C, *taps]`.
        new_weight: `[out, K, *taps]`.
        mean: `[C]`.
        current_mean: `[K]`.
    """
    sides = [
        (np.asarray(w, np.float64), np.asarray(m, np.float64)) for w, m in ((weight, mean), (new_weight, current_mean))
    ]
    before, after = (w.reshape(*w.shape[:2], -1).sum(2) @ m for w, m in sides)
    change: Array = before - after
    return change


@dataclass(frozen=True)
class Loss:
    """A squared error of outputs, and what it compares with.

    Attributes:
        error: in the units of the scatter that it was computed from: a sum over rows, or a mean.
        energy: `tr(W S W^T)`, how much the outputs vary.
    """

    error: float
    energy: float

    @property
    def relative(self) -> float:
        """Share of the outputs' variation that is lost; 0 where they do not vary."""
        return self.error / self.energy if self.energy > 0 else 0.0


def error_after(weight: npt.ArrayLike, scatter: npt.ArrayLike, kept: npt.ArrayLike, ridge: float = 0.0) -> Loss:
    """What a layer loses when columns go, with its weights and its bias refitted.

    Without a ridge it is `tr(W_P (S_PP - S_PK S_KK^-1 S_KP) W_P^T)`, the Schur complement; with one it is the error,
    without penalty, of the weights that the ridge leads to.

    Args:
        weight: `[out, C]`.
        scatter: `[C, C]`.
        kept: `[K]`.
        ridge: of the refit.

    Raises:
        ValueError: as `predictor`.
    """
    full, matrix = np.asarray(weight, np.float64), np.asarray(scatter, np.float64)
    found = predictor(matrix, kept, ridge)
    lost = np.zeros_like(full)
    lost[:, found.sources] = full[:, found.sources]
    lost[:, found.kept] = -full[:, found.sources] @ found.coefficients
    return Loss(max(0.0, float(_quadratic(lost, matrix).sum())), float(_quadratic(full, matrix).sum()))


def _quadratic(weight: Array, scatter: Array) -> Array:
    """`diag(W S W^T)` `[out]`."""
    form: Array = np.einsum("oc,oc->o", weight @ scatter, weight)
    return form


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Moments of rows that no refit has seen, of the dense model's columns x and the current model's x~.

    They decide, exactly as the rows themselves would, whether new weights are better than the old ones that are left:
    a least-squares fit to few rows may be worse.

    Attributes:
        count: rows that the sums stand for.
        scatter: `[C, C]`, sum of `(x - mean)(x - mean)^T`.
        mean: `[C]`.
        cross: `[C, K]`, sum of `(x - mean)(x~ - current_mean)^T`.
        current_scatter: `[K, K]`.
        current_mean: `[K]`.
    """

    count: float
    scatter: Array
    mean: Array
    cross: Array
    current_scatter: Array
    current_mean: Array

    @classmethod
    def of_one_side(cls, count: float, scatter: npt.ArrayLike, mean: npt.ArrayLike, kept: npt.ArrayLike) -> "HeldOut":
        """Where the current model's columns are the kept ones `[K]` of the dense model as they were."""
        matrix, average = np.asarray(scatter, np.float64), np.asarray(mean, np.float64)
        stay, _ = complement(kept, len(matrix))
        return cls(count, matrix, average, matrix[:, stay], matrix[np.ix_(stay, stay)], average[stay])

    def error(self, weight: npt.ArrayLike, new_weight: npt.ArrayLike, bias_change: npt.ArrayLike = 0.0) -> Array:
        """Mean over rows of `(W x + b - W' x~ - b')^2`, `[out]`.

        Args:
            weight: `[out, C]`.
            new_weight: `[out, K]`.
            bias_change: `b' - b`, `[out]`.
        """
        old, new = np.asarray(weight, np.float64), np.asarray(new_weight, np.float64)
        spread = _quadratic(old, self.scatter) + _quadratic(new, self.current_scatter)
        spread -= 2 * np.einsum("ok,ok->o", old @ self.cross, new)
        offset = old @ self.mean - new @ self.current_mean - np.asarray(bias_change, np.float64)
        error: Array = np.maximum(spread, 0) / self.count + offset**2
        return error

    def energy(self, weight: npt.ArrayLike) -> Array:
        """Variance of the dense outputs `[out]`."""
        energy: Array = _quadratic(np.asarray(weight, np.float64), self.scatter) / self.count
        return energy


__all__ = [
    "RIDGE",
    "HeldOut",
    "Loss",
    "Predictor",
    "bias_change",
    "error_after",
    "predictor",
    "predictor_cross",
    "refit",
    "refit_cross",
    "refit_to_targets",
]
