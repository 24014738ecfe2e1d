"""Optimizers against what their papers' formulas give in numpy, on parameters shaped and named as a model's are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings, shardings_like
from lm.train.optim import Adafactor, AdamW, Lion, Muon, Optimizer, matrix_dims, orthogonalize
from lm.train.schedule import Constant, Cosine, Linear
from lm.value import build, parse, plain

L, D, N, H, V = 3, 8, 2, 4, 16
AXES = {
    "tokens": ("vocab", "embed"),
    "positions": (None, "embed"),
    "layers": {
        "query": ("layers", "embed", "heads", "head_dim"),
        "query_bias": ("layers", "heads", "head_dim"),
        "out": ("layers", "heads", "head_dim", "embed"),
        "scale": ("layers", "norm"),
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
    },
    "head": ("embed", "vocab"),
}
SIZES = {"layers": L, "embed": D, "heads": N, "head_dim": H, "vocab": V, "norm": D, "mlp": 12, None: 6}
STEPS = 5


def random(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda axes: rng.standard_normal([SIZES[a] for a in axes]).astype(np.float32),
        AXES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run(optimizer: Optimizer, gradients: list[Any], params: Any) -> Any:
    """The parameters after an update by each of the gradients."""
    return updates_of(optimizer, AXES)(params, jax.tree.map(lambda *g: np.stack(g), *gradients))


def updates_of(optimizer: Optimizer, axes: Any) -> Callable[[Any, Any], Any]:
    """(parameters, gradients one behind the other) -> the parameters after them."""
    tx = optimizer.build(STEPS, axes)

    def step(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda params, gradients: jax.lax.scan(step, (params, tx.init(params)), gradients)[0][0])


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(p, simple=True, separator="."): np.asarray(x, np.float64)
        for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


MATRICES = {"layers.query", "layers.out", "layers.up", "layers.down"}
DECAYED = {"tokens", "positions", "head", *MATRICES}
GRADIENTS = [random(seed) for seed in range(STEPS)]


def clipped(grads: Any, norm: float) -> dict[str, np.ndarray]:
    flat = leaves(grads)
    total = np.sqrt(sum((g**2).sum() for g in flat.values()))
    return {k: g * min(1, norm / total) for k, g in flat.items()}


def adamw(o: Any, rate: Any, p: np.ndarray, gradients: list[np.ndarray], decays: bool) -> np.ndarray:
    """arXiv:1412.6980, algorithm 1, with the decay of arXiv:1711.05101, algorithm 2."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = o.b1 * m + (1 - o.b1) * g, o.b2 * v + (1 - o.b2) * g * g
        direction = m / (1 - o.b1**t) / (np.sqrt(v / (1 - o.b2**t)) + o.eps)
        p = p - rate(t - 1) * (direction + o.weight_decay * decays * p)
    return p


def lion(o: Any, rate: Any, p: np.ndarray, gradients: list[np.ndarray], decays: bool) -> np.ndarray:
    """arXiv:2302.06675, program 1."""
    m = np.zeros_like(p)
    for t, g in enumerate(gradients):
        direction = np.sign(o.b1 * m + (1 - o.b1) * g)
        m = o.b2 * m + (1 - o.b2) * g
        p = p - rate(t) * (direction + o.weight_decay * decays * p)
    return p


def muon(o: Any, rate: Any, p: np.ndarray, gradients: list[np.ndarray], rows: int) -> np.ndarray:
    """https://kellerjordan.github.io/posts/muon/ on each layer's matrix [rows, columns]; scale of arXiv:2502.16982."""
    p, buffer = p.reshape(L, rows, -1), 0.0
    for t, g in enumerate(gradients):
        g = g.reshape(p.shape)
        buffer = o.momentum * buffer + g
        x = g + o.momentum * buffer
        x = x / np.sqrt((x**2).sum((1, 2), keepdims=True))
        for _ in range(o.newton_schulz_steps):
            a = x @ x.swapaxes(1, 2)
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        p = p - rate(t) * (0.2 * np.sqrt(max(p.shape[1:])) * x + o.weight_decay * p)
    return p


COMMON: dict[str, Any] = {"learning_rate": 0.02, "schedule": Linear(2), "weight_decay": 0.3, "clip": 0.7}
ADAM: dict[str, Any] = {"b1": 0.8, "b2": 0.9, "eps": 0.02}  # an eps of the gradients' size


@pytest.mark.parametrize(
    ("optimizer", "reference"), [(AdamW(**COMMON, **ADAM), adamw), (Lion(**COMMON), lion)], ids=["AdamW", "Lion"]
)
def test_as_the_paper_says(optimizer: Optimizer, reference: Any) -> None:
    params = random(9)
    got = leaves(run(optimizer, GRADIENTS, params))
    gradients = [clipped(g, optimizer.clip) for g in GRADIENTS]
    rate = optimizer.schedule_fn(STEPS)
    for name, p in leaves(params).items():
        want = reference(optimizer, lambda t: float(rate(t)), p, [g[name] for g in gradients], name in DECAYED)
        np.testing.assert_allclose(got[name], want, rtol=2e-4, atol=2e-5, err_msg=name)


def test_muon_as_the_paper_says() -> None:
    optimizer, params = Muon(**COMMON, **ADAM, adam_learning_rate=0.005), random(9)
    got = leaves(run(optimizer, GRADIENTS, params))
    gradients = [clipped(g, optimizer.clip) for g in GRADIENTS]
    rate = optimizer.schedule_fn(STEPS)
    for name, p in leaves(params).items():
        mine = [g[name] for g in gradients]
        if name in MATRICES:
            rows = {"layers.out": N * H, "layers.down": SIZES["mlp"]}.get(name, D)
            want = muon(optimizer, lambda t: float(rate(t)), p, mine, rows).reshape(p.shape)
        else:
            want = adamw(optimizer, lambda t: float(rate(t)) / 4, p, mine, name in DECAYED)
        np.testing.assert_allclose(got[name], want, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 32), (1, 48, 12)])
def test_orthogonalised_keeps_the_directions_and_evens_the_lengths(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[0] *= 1e-3  # one matrix of a stack must not lean on another
    for before, after in zip(x, np.asarray(jax.jit(orthogonalize)(x)), strict=True):
        u, _, v = np.linalg.svd(before, full_matrices=False)
        inner = u.T @ after @ v.T
        values = np.diag(inner)
        assert (values > 0.3).all() and (values < 1.3).all() and 0.7 < values.mean() < 1.2
        np.testing.assert_allclose(inner, np.diag(values), atol=1e-3)


def test_muon_moves_matrices_as_far_as_adamw_does() -> None:
    """The scaling's point: a root mean square of about 0.2 whatever the shape, which is AdamW's in the paper."""
    params = random(9)
    moved = run(Muon(learning_rate=1.0, schedule=Constant(), weight_decay=0.0), GRADIENTS[:1], params)
    for name in MATRICES:
        change = leaves(moved)[name] - leaves(params)[name]
        assert 0.12 < np.sqrt((change**2).mean()) < 0.3


def test_a_layer_is_a_parameter_of_its_own() -> None:
    """Muon and Adafactor: a stack of layers is updated as each of its layers would be alone."""
    for optimizer in (Muon(clip=0.0), Adafactor(clip=0.0, min_side=2)):
        params, axes = random(9)["layers"], AXES["layers"]
        grads = jax.tree.map(lambda *g: np.stack(g), *(g["layers"] for g in GRADIENTS[:3]))
        together = jax.device_get(updates_of(optimizer, axes)(params, grads))
        of_a_layer = updates_of(optimizer, jax.tree.map(lambda a: a[1:], axes, is_leaf=lambda x: isinstance(x, tuple)))
        for i in range(L):
            own = jax.tree.map(lambda x, i=i: x[i], params), jax.tree.map(lambda x, i=i: x[:, i], grads)
            alone = of_a_layer(*own)
            for name, p in alone.items():
                np.testing.assert_allclose(together[name][i], p, rtol=1e-4, atol=1e-6, err_msg=f"{optimizer} {name}")


def test_adafactor_as_the_paper_says() -> None:
    """arXiv:1804.04235, algorithms 4 (matrices) and 5 (vectors), in the first two steps."""
    optimizer, params = Adafactor(clip=0.0, min_side=2, schedule=Constant()), random(9)
    got = leaves(run(optimizer, GRADIENTS[:2], params))["tokens"]
    x = leaves(params)["tokens"]
    rows = columns = 0.0
    for t, grads in enumerate(GRADIENTS[:2], 1):
        g = leaves(grads)["tokens"]
        b2 = 1 - t**-0.8
        rows = b2 * rows + (1 - b2) * (g**2 + 1e-30).mean(1, keepdims=True)
        columns = b2 * columns + (1 - b2) * (g**2 + 1e-30).mean(0, keepdims=True)
        update = g / np.sqrt(rows * columns / rows.mean())
        update /= max(1, np.sqrt((update**2).mean()))
        x = x - optimizer.learning_rate * max(1e-3, np.sqrt((x**2).mean())) * update
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


def test_adafactor_keeps_no_second_moment_as_large_as_its_matrix() -> None:
    params = random(9)
    state = jax.eval_shape(Adafactor(min_side=2).build(STEPS, AXES).init, params)
    assert max(x.size for x in jax.tree.leaves(state)) < L * D * N * H
    plain_adam = jax.eval_shape(AdamW().build(STEPS, AXES).init, params)
    assert max(x.size for x in jax.tree.leaves(plain_adam)) == max(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "optimizer", [AdamW(), Lion(), Adafactor(weight_decay=0.1), Muon()], ids=lambda o: type(o).__name__
)
@pytest.mark.parametrize("embeddings", [True, False])
def test_what_decays(optimizer: Optimizer, embeddings: bool) -> None:
    """With zero gradients only decay moves a parameter: matrices shrink, vectors stay."""
    optimizer = dataclasses.replace(optimizer, decay_embeddings=embeddings)
    params = random(9)
    after = run(optimizer, [jax.tree.map(np.zeros_like, params)], params)
    moved = {name for name, x in leaves(after).items() if not np.array_equal(x, leaves(params)[name])}
    assert moved == (DECAYED if embeddings else DECAYED - {"tokens", "positions"})


def test_the_sides_of_a_parameter() -> None:
    assert matrix_dims(("layers", "embed", "kv_heads", "head_dim")) == ((1,), (2, 3))
    assert matrix_dims(("layers", "heads", "head_dim", "embed")) == ((1, 2), (3,))
    assert matrix_dims(("layers", "experts", "embed", "mlp")) == ((2,), (3,))
    assert matrix_dims(("layers", "head_dim")) == ((1,),)
    assert matrix_dims(("layers", "heads", "head_dim")) == ((1, 2),)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 1000.0), (1.0, 1e-4), (0.0, 1000.0)])
def test_clip_bounds_the_global_norm(clip: float, scale: float) -> None:
    grads = jax.tree.map(lambda g: g * scale, GRADIENTS[0])
    optimizer = Optimizer(learning_rate=1.0, schedule=Constant(), weight_decay=0.0, clip=clip)
    params = jax.tree.map(np.zeros_like, grads)
    moved = run(optimizer, [grads], params)
    norm, change = (np.sqrt(sum((x**2).sum() for x in leaves(tree).values())) for tree in (grads, moved))
    np.testing.assert_allclose(change, min(clip, norm) if clip else norm, rtol=1e-4)


@pytest.mark.parametrize("optimizer", [AdamW(), Lion(), Muon()], ids=lambda o: type(o).__name__)
def test_moments_are_placed_as_their_parameters(optimizer: Optimizer) -> None:
    """Sharding finds a moment by the end of its path: nothing of a large parameter's size may be whole everywhere."""
    params = random(9)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    placed = shardings(params, AXES, mesh)
    state = jax.eval_shape(optimizer.build(STEPS, AXES).init, params)
    where = shardings_like(state, params, placed, mesh)
    large = [(x, s) for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True) if x.size >= D * V]
    assert large and not any(s.is_fully_replicated for _, s in large)


@pytest.mark.parametrize("cls", [AdamW, Lion, Adafactor, Muon])
def test_it_learns(cls: type[Optimizer]) -> None:
    target, params = random(1), random(2)

    def loss(p: Any) -> jax.Array:
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True))

    rates = {"learning_rate": 0.1, "adam_learning_rate": 0.05} if cls is Muon else {"learning_rate": 0.05}
    tx = cls(**rates, schedule=Cosine(2), weight_decay=0.0, clip=0.0).build(150, AXES)

    @jax.jit
    def trained(params: Any) -> tuple[jax.Array, jax.Array]:
        def step(_: Any, carry: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        return loss(params), loss(jax.lax.fori_loop(0, 150, step, (params, tx.init(params)))[0])

    first, last = trained(params)
    assert last < 0.2 * first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(learning_rate=-1e-3), "AdamW.learning_rate=-0.001"),
        (lambda: AdamW(b2=1.0), "b2=1.0: expected at least 0 and less than 1"),
        (lambda: Muon(momentum=1.5), "momentum=1.5"),
        (lambda: Lion(clip=float("nan")), "clip=nan"),
        (lambda: AdamW(schedule=Cosine(10)).build(5, AXES), "warmup_steps=10 is longer than the run of 5 steps"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_values_are_read_from_text_and_plain_data() -> None:
    optimizer = Muon(schedule=Cosine(3), momentum=0.9)
    assert build(Optimizer, plain(optimizer)) == optimizer
    assert parse({"optimizer": optimizer}["optimizer"], "schedule=Linear(warmup_steps=7)").schedule == Linear(7)
    assert hash(optimizer) == hash(dataclasses.replace(optimizer))
