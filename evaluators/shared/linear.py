"""Linear classifiers on features: ridge regression in closed form, and logistic regression."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.sharding import Mesh

from big_vlp.parallel import meshes

# Penalties that are tried, of features of length 1; the best is chosen on what was left out.
RIDGE_PENALTIES = tuple(10.0**e for e in range(-4, 4))
LOGISTIC_PENALTIES = tuple(10.0**e for e in range(-8, -1))
_LEFT_OUT_ROWS = 50_000  # at most so many are left out, one by one, to choose a penalty
_BLOCK = 4096
_LOGISTIC_STEPS = 200


def ridge(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Least squares on targets of 1 and -1, with the penalty that predicts best what is left out.

    Each row is left out once, which has a closed form; equal to scikit-learn's RidgeClassifierCV.

    Args:
      features: f32[M, D].
      labels: i[M].
      num_classes: C.

    Returns:
      f32[D + 1, C], the last row is the bias.
    """
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    counts = np.bincount(labels, minlength=num_classes)
    offset = 2 * counts / len(labels) - 1  # the mean target of each class
    # X'Y of centred targets is twice the sum of each class' centred features.
    products = np.zeros((x.shape[1], num_classes))
    np.add.at(products.T, labels, x)
    products *= 2
    values, vectors = np.linalg.eigh(x.T @ x)
    rotated = vectors.T @ products
    shrunk = [1 / (np.maximum(values, 0) + penalty) for penalty in RIDGE_PENALTIES]
    rows = np.arange(0, len(x), -(-len(x) // _LEFT_OUT_ROWS))
    errors = np.zeros(len(shrunk))
    for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
        z = x[block] @ vectors
        targets = np.where(np.arange(num_classes) == labels[block][:, None], 1.0, -1.0) - offset
        for i, scale in enumerate(shrunk):
            leverage = 1 / len(x) + (z * z * scale).sum(axis=1, keepdims=True)
            left = (targets - (z * scale) @ rotated) / np.maximum(1 - leverage, 1e-12)
            errors[i] += np.sum(left * left)
    weights = vectors @ (shrunk[int(errors.argmin())][:, None] * rotated)
    return np.vstack([weights, offset - mean @ weights]).astype(np.float32)


def logistic(features: np.ndarray, labels: np.ndarray, num_classes: int, mesh: Mesh) -> np.ndarray:
    """Multinomial logistic regression by L-BFGS on all devices, as in CLIP (arXiv 2103.00020, 3.2).

    The penalty is chosen on each tenth row, then all rows are fitted. As `ridge`.
    """
    held_out = np.arange(len(labels)) % 10 == 9
    best, penalty = -1.0, LOGISTIC_PENALTIES[0]
    if held_out.any():
        fit = _Logistic(features[~held_out], labels[~held_out], num_classes, mesh)
        start = None
        for candidate in reversed(LOGISTIC_PENALTIES):  # from the smoothest, each from the last
            start = fit(candidate, start)
            chosen = (features[held_out] @ start[:-1] + start[-1]).argmax(axis=1)
            right = float(np.mean(chosen == labels[held_out]))
            if right > best:
                best, penalty = right, candidate
    return _Logistic(features, labels, num_classes, mesh)(penalty).astype(np.float32)


class _Logistic:
    """The loss of all rows, which are divided among the devices; the steps are the hosts' alike."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int, mesh: Mesh):
        self._shape = (features.shape[1] + 1, num_classes)
        rows = -(-len(labels) // mesh.size) * mesh.size
        padding = rows - len(labels)
        arrays = (
            np.pad(features, ((0, padding), (0, 0))),
            np.pad(labels.astype(np.int32), (0, padding)),
            np.pad(np.full(len(labels), 1 / len(labels), np.float32), (0, padding)),
        )
        split = meshes.over_batch(mesh)
        self._rows = [
            jax.make_array_from_callback(x.shape, split, lambda index, x=x: x[index])
            for x in arrays
        ]
        self._loss: Callable = jax.jit(
            jax.value_and_grad(_loss), out_shardings=meshes.replicated(mesh)
        )

    def __call__(self, penalty: float, start: np.ndarray | None = None) -> np.ndarray:
        """f64[D + 1, C] of the least loss with this penalty."""

        def objective(flat):
            weights = flat.reshape(self._shape)
            loss, slope = self._loss(weights.astype(np.float32), *self._rows)
            slope = np.asarray(slope, np.float64)
            slope[:-1] += penalty * weights[:-1]
            return float(loss) + penalty / 2 * np.sum(weights[:-1] ** 2), slope.reshape(-1)

        start = np.zeros(self._shape) if start is None else start
        found = scipy.optimize.minimize(
            objective,
            start.reshape(-1),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _LOGISTIC_STEPS},
        )
        return found.x.reshape(self._shape)


def _loss(weights, features, labels, share):
    logits = jnp.matmul(features, weights[:-1], precision="highest") + weights[-1]
    right = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return -jnp.sum(share * right)
