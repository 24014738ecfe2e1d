"""Optimizers as frozen values, built into Optax transformations.

What happens to a parameter follows from its logical axes, never from its name: "layers" and "experts" count how many
matrices are stacked, heads and head_dim are one side of a matrix, and what is left with fewer than two sides is a
vector. Vectors are not decayed; Muon and Adafactor work on each matrix of a stack by itself, as their papers mean it.
Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101), and multiplied by the rate as in PyTorch.

Where axes are wider than a base model's (muP, lm/model/parametrisation.py), each optimizer has its multiplier of a
parameter's learning rate. Decay has none: the share of a weight that a step decays, learning_rate x weight_decay, is
the same at every width (Wang & Aitchison 2024, arXiv:2405.13698).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from lm.bounds import Decay, Natural, NonNegative, Sentinel, check, whole
from lm.model.parametrisation import STACKED, Axes, MultipliedAxes, fan_multipliers, matrix_dims
from lm.train.schedule import Cosine, Schedule

TABLES = ("vocab", "seq", None)  # a matrix that begins with one of these is looked up by row: tokens, positions
BALANCE_RATE = 1e-3  # DeepSeek-V3's bias update speed (arXiv:2412.19437, section 4.2)
OUTSIDE = (*TABLES, "act_embed")  # a matrix with one of these is no hidden layer's


# ---------------------------------------------------------------- what a parameter is


def is_table(axes: Axes) -> bool:
    """Whether a parameter is a table of embeddings, one a row."""
    return len(matrix_dims(axes)) >= 2 and axes[0] in TABLES


def _is_matrix(axes: Axes) -> bool:
    """Whether Muon may have it: a hidden layer's matrix, neither a table nor the head."""
    return len(matrix_dims(axes)) == 2 and not set(axes) & set(OUTSIDE)


def _map_axes(function: Callable[[Axes], Any], params_axes: Any) -> Any:
    return jax.tree.map(function, params_axes, is_leaf=lambda x: isinstance(x, tuple))


def _matrices(x: jax.Array, axes: Axes) -> jax.Array:
    """`x` as [stack, rows, columns] (or [stack, n] for vectors), without moving an element."""
    stacked = [d for d, a in zip(x.shape, axes, strict=True) if a in STACKED]
    assert all(a in STACKED for a in axes[: len(stacked)]), axes  # a stack's axes come first, so this is a reshape
    return x.reshape(math.prod(stacked), *(math.prod(x.shape[i] for i in side) for side in matrix_dims(axes)))


# ---------------------------------------------------------------- optimizers


def is_enabled(number: Any) -> bool:
    """Whether a hyperparameter that 0 turns off is on; a traced one (lm/train/program.py) always is."""
    return isinstance(number, jax.core.Tracer) or bool(number)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What every optimizer has: a peak `learning_rate`, its `schedule`, decoupled `weight_decay` of the matrices, and a
    `clip` of the gradient's global norm (0: none). `decay_embeddings=False` leaves tables of embeddings undecayed."""

    learning_rate: NonNegative = 1e-3
    schedule: Schedule = Cosine()
    weight_decay: Annotated[NonNegative, Sentinel(0, "none")] = 0.1
    clip: Annotated[NonNegative, Sentinel(0, "none")] = 1.0
    decay_embeddings: bool = True

    def __post_init__(self) -> None:
        check(self, type(self).__name__)

    def schedule_fn(self, total_steps: int) -> optax.Schedule:
        """step -> the learning rate of that step, as `build` applies it."""
        return self.schedule.build(self.learning_rate, total_steps)

    def decay_mask(self, params_axes: Any) -> Any:
        """True where a parameter decays: it has at least two sides, and is no table unless `decay_embeddings`."""
        return _map_axes(
            lambda axes: len(matrix_dims(axes)) >= 2 and (self.decay_embeddings or not is_table(axes)), params_axes
        )

    def build(self, total_steps: int, params_axes: Any) -> optax.GradientTransformation:
        """The transformation for a run of `total_steps` over parameters whose logical axes are the tree `params_axes`.

        Raises ValueError when the schedule does not fit in the run."""
        clip = [optax.clip_by_global_norm(self.clip)] if is_enabled(self.clip) else []
        return balancing(optax.chain(*clip, self.descent(total_steps, params_axes)), params_axes)

    def descent(self, total_steps: int, params_axes: Any) -> optax.GradientTransformation:
        """Clipped gradients -> what is added to the parameters."""
        mask = self.decay_mask(params_axes)
        decay = [optax.add_decayed_weights(self.weight_decay, mask)] if is_enabled(self.weight_decay) else []
        rate = optax.scale_by_learning_rate(self.schedule_fn(total_steps))
        return optax.chain(self.direction(params_axes), *self._rates(params_axes), *decay, rate)

    def _rates(self, params_axes: Any) -> list[optax.GradientTransformation]:
        """Directions -> directions times `lr_multiplier`, where the parametrisation has one."""
        leaves = jax.tree.leaves(params_axes, is_leaf=lambda x: isinstance(x, tuple))
        factors = [self.lr_multiplier(axes) for axes in leaves if isinstance(axes, MultipliedAxes)]
        if all(factor == 1 for factor in factors):
            return []

        def scaled(updates: Any, params: Any = None) -> Any:
            return jax.tree.map(lambda u, axes: u * self.lr_multiplier(axes), updates, params_axes)

        return [optax.stateless(scaled)]

    def lr_multiplier(self, axes: Axes) -> float:
        """What the learning rate of a parameter is multiplied by, as it has grown over that of the base model; for
        plain gradient descent, fan-out over fan-in (2203.03466, table 3).

        Raises ValueError where this optimizer knows no such rule."""
        if type(self).direction is not Optimizer.direction:
            raise ValueError(
                f"{type(self).__name__} has no lr_multiplier, which MuP needs for the learning rates of a wider model: "
                "take AdamW, or the standard Parametrisation()"
            )
        if is_enabled(self.clip):
            raise ValueError(
                f"optimizer.clip={self.clip}: plain gradient descent follows the gradient's norm, which under MuP "
                "grows with the width, so set clip=0"
            )
        inputs, outputs = fan_multipliers(axes)
        return outputs / inputs

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        """Clipped gradients -> the direction, before decay and learning rate. Plain gradient descent here."""
        return optax.identity()


def balancing(others: optax.GradientTransformation, params_axes: Any) -> optax.GradientTransformation:
    """`others`, but for numbers with the axis "balance", whose gradient is the excess of an expert's load: they move
    against its sign by BALANCE_RATE a step (Wang et al. 2024, arXiv:2408.15664, algorithm 1)."""
    axes = jax.tree.leaves(params_axes, is_leaf=lambda x: isinstance(x, tuple))
    if not any("balance" in one for one in axes):
        return others

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = others.update(grads, state, params)
        moved = lambda axes, u, g: -BALANCE_RATE * jnp.sign(g) if "balance" in axes else u  # noqa: E731
        return jax.tree.map(moved, params_axes, updates, grads, is_leaf=lambda x: isinstance(x, tuple)), state

    return optax.GradientTransformation(others.init, update)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled decay. Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; arXiv:1711.05101, algorithm 2."""

    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: NonNegative = 1e-8

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def lr_multiplier(self, axes: Axes) -> float:
        """1 / fan-in: entries of an update are of one size (2203.03466, table 3)."""
        return 1 / fan_multipliers(axes)[0]


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of an interpolated momentum: wants about a third of AdamW's rate and three times its decay. Chen et al.
    2023, arXiv:2302.06675, program 1."""

    learning_rate: NonNegative = 3e-4
    b1: Decay = 0.9
    b2: Decay = 0.99

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)

    def lr_multiplier(self, axes: Axes) -> float:
        """1 / fan-in, as for Adam."""
        return 1 / fan_multipliers(axes)[0]


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Second moments kept as a row and a column of each matrix. Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4.

    The learning rate is relative to a matrix's root mean square. `decay_rate` is the exponent of
    b2_t = 1 - t^-decay_rate; `clip_rms` the threshold of a matrix's update; sides shorter than `min_side` are not
    factored."""

    learning_rate: NonNegative = 1e-2
    weight_decay: Annotated[NonNegative, Sentinel(0, "none")] = 0.0
    decay_rate: NonNegative = 0.8
    clip_rms: Annotated[NonNegative, Sentinel(0, "none")] = 1.0
    min_side: Natural = 128

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        moments = optax.scale_by_factored_rms(True, self.decay_rate, min_dim_size_to_factor=self.min_side)
        clip = [optax.clip_by_block_rms(self.clip_rms)] if is_enabled(self.clip_rms) else []
        return _per_matrix(optax.chain(moments, *clip, optax.scale_by_param_block_rms()), params_axes)

    def lr_multiplier(self, axes: Axes) -> float:
        """Adam's 1 / fan-in, less what the matrix's root mean square, that of its first values, brings of it already:
        1 / fan-in in an output, fan-in^-0.5 in a hidden layer."""
        inputs, outputs = fan_multipliers(axes)
        return 1.0 if outputs == 1 else inputs**-0.5


def _per_matrix(inner: optax.GradientTransformation, params_axes: Any) -> optax.GradientTransformation:
    """`inner` applied to each matrix of each parameter by itself, as if every layer were a parameter of its own."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p, axes: jax.vmap(inner.init)(_matrices(p, axes)), params, params_axes)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        tree: Any = jax.tree.structure(updates)
        each = []
        for g, axes, s, p in zip(*(tree.flatten_up_to(t) for t in (updates, params_axes, state, params)), strict=True):
            new, s = jax.vmap(inner.update)(_matrices(g, axes), s, _matrices(p, axes))
            each.append((new.reshape(g.shape), s))
        return tuple(tree.unflatten(column) for column in zip(*each, strict=True))

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Momentum made orthogonal, for the matrices of the hidden layers; AdamW at its own rate for tables, head, vectors.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Each update is scaled by
    0.2 sqrt(max(rows, columns)), which gives it the root mean square of AdamW's updates whatever the shape, so that
    AdamW's rates and decay carry over (Liu et al. 2025, arXiv:2502.16982, section 2.2). A matrix that has grown over a
    base model keeps the scale of the base's shape, times the root of the growth of its fan-out over that of its fan-in:
    the spectral norm under which features move alike at every width (Yang et al. 2023, arXiv:2310.17813)."""

    momentum: Decay = 0.95
    newton_schulz_steps: Annotated[int, whole(1, 100)] = 5
    adam_learning_rate: NonNegative = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: NonNegative = 1e-8

    def descent(self, total_steps: int, params_axes: Any) -> optax.GradientTransformation:
        adam = {f.name: getattr(self, f.name) for f in dataclasses.fields(AdamW)}
        others = AdamW(**{**adam, "learning_rate": self.adam_learning_rate})
        masked = optax.MaskedNode()  # how `partition` hides from each side what belongs to the other
        both = {
            "matrices": super().descent(total_steps, _map_axes(lambda a: a if _is_matrix(a) else masked, params_axes)),
            "others": others.descent(total_steps, _map_axes(lambda a: masked if _is_matrix(a) else a, params_axes)),
        }
        return optax.partition(both, _map_axes(lambda a: "matrices" if _is_matrix(a) else "others", params_axes))

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        def orthogonal(updates: Any, params: Any = None) -> Any:
            return jax.tree.map(self._orthogonal, updates, params_axes)

        return optax.chain(optax.trace(self.momentum, nesterov=True), optax.stateless(orthogonal))

    def lr_multiplier(self, axes: Axes) -> float:
        """1: `direction` sees to it, and AdamW to the others."""
        return 1.0

    def _orthogonal(self, x: jax.Array, axes: Axes) -> jax.Array:
        matrices = _matrices(x, axes)
        rows, columns = matrices.shape[1:]
        inputs, outputs = fan_multipliers(axes)
        scale = 0.2 * math.sqrt(max(rows / inputs, columns / outputs)) * math.sqrt(outputs / inputs)
        return scale * orthogonalize(matrices, self.newton_schulz_steps).reshape(x.shape)


def orthogonalize(x: jax.Array, steps: int = 5) -> jax.Array:
    """Each matrix of x [stack, rows, columns] with its singular values brought near 1 (0.7 to 1.2 after 5 steps) and
    its singular vectors kept: a quintic Newton-Schulz iteration, https://kellerjordan.github.io/posts/muon/."""
    if x.shape[1] > x.shape[2]:  # the smaller Gram matrix is the cheaper one
        return orthogonalize(x.swapaxes(1, 2), steps).swapaxes(1, 2)

    def step(_: int, m: jax.Array) -> jax.Array:
        gram = m @ m.T
        return 3.4445 * m + (-4.7750 * gram + 2.0315 * gram @ gram) @ m

    # matrix by matrix: each is large enough to fill a device, and XLA's batched matmul on CPUs is the slower one
    return jax.lax.map(lambda m: jax.lax.fori_loop(0, steps, step, m / (jnp.linalg.norm(m) + 1e-7)), x)
