"""Linear classifiers on features: ridge regression in closed form, and logistic regression."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from big_vlp.parallel import meshes
from big_vlp.parallel.processes import raise_together

# Penalties that are tried, of features of length 1, and all else below is this project's choice.
RIDGE_PENALTIES = tuple(10.0**e for e in range(-4, 4))
LOGISTIC_PENALTIES = tuple(10.0**e for e in range(-8, -1))
_LEFT_OUT_ROWS = 50_000  # at most so many are left out, one by one, to choose a penalty
_ROWS = 4096  # that the host takes at once
_LOGITS_PER_DEVICE = 2**24  # at once: 64 MiB in float32
_STEPS = 1000
_SLOPE = 1e-6  # at most, of each weight, where the least loss is found


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
    width = features.shape[1]
    mean = sum(features[rows].sum(axis=0, dtype=np.float64) for rows in _blocks(len(features)))
    mean /= len(features)
    offset = 2 * np.bincount(labels, minlength=num_classes) / len(labels) - 1  # the mean targets
    squares, sums = np.zeros((width, width)), np.zeros((num_classes, width))
    for rows in _blocks(len(features)):
        x = features[rows] - mean
        squares += x.T @ x
        places = labels[rows], np.arange(len(x))
        sums += scipy.sparse.csr_array((np.ones(len(x)), places), (num_classes, len(x))) @ x
    values, vectors = np.linalg.eigh(squares)
    # X'Y of centred targets is twice the sum of each class' centred features.
    rotated = vectors.T @ (2 * sums.T)
    shrunk = [1 / (np.maximum(values, 0) + penalty) for penalty in RIDGE_PENALTIES]
    left_out = _permutation(len(features))[:_LEFT_OUT_ROWS]
    errors = np.zeros(len(shrunk))
    for rows in _blocks(len(left_out)):
        chosen = left_out[rows]
        z = (features[chosen] - mean) @ vectors
        targets = np.where(np.arange(num_classes) == labels[chosen][:, None], 1.0, -1.0) - offset
        for i, scale in enumerate(shrunk):
            leverage = 1 / len(features) + (z * z * scale).sum(axis=1, keepdims=True)
            missed = (targets - (z * scale) @ rotated) / np.maximum(1 - leverage, 1e-12)
            errors[i] += np.sum(missed * missed)
    weights = vectors @ (shrunk[int(errors.argmin())][:, None] * rotated)
    return np.vstack([weights, offset - mean @ weights]).astype(np.float32)


def logistic(features: np.ndarray, labels: np.ndarray, num_classes: int, mesh: Mesh) -> np.ndarray:
    """Multinomial logistic regression by L-BFGS, whose loss is computed on all devices.

    The penalty is the one with the least loss on a tenth of the rows that is left out; then all
    rows are fitted. As `ridge`; but sums over rows depend in their last bits on the number of
    devices, and so do the weights a little.
    """
    order = _permutation(len(labels))
    penalty = _best_penalty(features, labels, order, num_classes, mesh)
    return _Logistic(features, labels, order, num_classes, mesh)(penalty).astype(np.float32)


def _best_penalty(features, labels, order, num_classes: int, mesh: Mesh) -> float:
    held_out, kept = np.split(order, [len(order) // 10])
    if not len(held_out):
        return LOGISTIC_PENALTIES[0]
    fit = _Logistic(features, labels, kept, num_classes, mesh)
    other = _Logistic(features, labels, held_out, num_classes, mesh)
    start, losses = None, {}
    for penalty in reversed(LOGISTIC_PENALTIES):  # from the smoothest, each from the last
        start = fit(penalty, start)
        losses[penalty] = other.loss(start)[0]
    return min(losses, key=losses.__getitem__)


class _Logistic:
    """The loss of some rows, which are divided among the devices. Process 0 takes the steps, and
    the others hear at which weights the loss is asked for: hosts whose sums differ in a bit would
    part, and wait for each other."""

    def __init__(self, features, labels, chosen: np.ndarray, num_classes: int, mesh: Mesh):
        self._shape, self._mesh = (features.shape[1] + 1, num_classes), mesh
        parts = meshes.batch_parts(mesh)
        own = -(-len(chosen) // parts)  # rows of a device
        block = min(own, max(1, _LOGITS_PER_DEVICE // num_classes))
        count = -(-own // block)
        total = parts * count * block
        split = meshes.over_batch(mesh)

        def on_devices(values, *shape):
            def part(index):
                rows = chosen[index[0]]  # fewer than asked for at the end
                found = np.zeros((len(range(*index[0].indices(total))), *shape), values.dtype)
                found[: len(rows)] = values[rows]
                return found

            return jax.make_array_from_callback((total, *shape), split, part)

        share = np.full(len(labels), 1 / len(chosen), np.float32)  # 0 where there is no row
        self._rows = (
            on_devices(features, features.shape[1]),
            on_devices(labels.astype(np.int32)),
            on_devices(share),
        )
        batch, whole = PartitionSpec(meshes.BATCH_AXES), PartitionSpec()
        self._loss: Callable = jax.jit(
            jax.shard_map(
                lambda *arrays: jax.lax.psum(_loss(block, *arrays), meshes.BATCH_AXES),
                mesh=mesh,
                in_specs=(whole, batch, batch, batch),
                out_specs=whole,
                check_vma=False,
            )
        )

    def loss(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Of f[D + 1, C], without a penalty, and its slope f64[D + 1, C].

        Raises:
          Exception, Stop: see `parallel.processes.raise_together`.
        """
        raise_together(self._mesh)  # a fit takes minutes
        loss, slope = self._loss(weights.astype(np.float32), *self._rows)
        return float(loss), np.asarray(slope, np.float64)

    def __call__(self, penalty: float, start: np.ndarray | None = None) -> np.ndarray:
        """f64[D + 1, C] of the least loss with this penalty, the same on all hosts."""
        start = np.zeros(self._shape) if start is None else start
        if jax.process_index():
            return self._followed()

        def objective(flat):
            weights = flat.reshape(self._shape)
            _from_first(weights, False)
            loss, slope = self.loss(weights)
            slope[:-1] += penalty * weights[:-1]
            return loss + penalty / 2 * np.sum(weights[:-1] ** 2), slope.reshape(-1)

        found = scipy.optimize.minimize(
            objective,
            start.reshape(-1),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _STEPS, "maxfun": 2 * _STEPS, "gtol": _SLOPE, "ftol": 1e-9},
        ).x.reshape(self._shape)
        _from_first(found, True)
        return found

    def _followed(self) -> np.ndarray:
        done = False
        while not done:
            weights, done = _from_first(np.zeros(self._shape), False)
            if not done:
                self.loss(weights)
        return weights


def _from_first(weights: np.ndarray, done: bool) -> tuple[np.ndarray, bool]:
    """What process 0 has, to the bit."""
    if jax.process_count() == 1:
        return weights, done
    words = np.append(np.frombuffer(weights.tobytes(), np.uint32), np.uint32(done))
    words = np.asarray(multihost_utils.broadcast_one_to_all(words))
    return np.frombuffer(words[:-1].tobytes(), np.float64).reshape(weights.shape), bool(words[-1])


def _loss(block: int, weights, features, labels, share):
    """Loss and slope of a device's rows; no more than `block` rows have logits at once."""

    def add(total, rows):
        x, label, share = rows
        logits = jnp.matmul(x, weights[:-1], precision="highest") + weights[-1]
        logs = jax.nn.log_softmax(logits)
        right = jnp.arange(logits.shape[1]) == label[:, None]
        off = (jnp.exp(logs) - right) * share[:, None]  # the slope of the logits
        slope = jnp.vstack([jnp.matmul(x.T, off, precision="highest"), off.sum(axis=0)])
        loss = -jnp.sum(jnp.where(right, logs, 0) * share[:, None])
        return (total[0] + loss, total[1] + slope), None

    blocks = [x.reshape(-1, block, *x.shape[1:]) for x in (features, labels, share)]
    return jax.lax.scan(add, (jnp.float32(0), jnp.zeros_like(weights)), blocks)[0]


def _permutation(count: int) -> np.ndarray:
    """The same in every run, whatever the order of the rows says."""
    return np.random.default_rng(0).permutation(count)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, count, _ROWS))
