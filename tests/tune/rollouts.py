"""What tests of learning from a model's own completions share: a small model, sums as prompts, steps and runs."""

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.data.loader import Batches, prepare
from lm.decode.sampling import Sampling
from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.model.compute import Compute
from lm.model.families import llama
from lm.run import course
from lm.sharding.mesh import make_mesh
from lm.text.tokenizer import Bytes
from lm.train.step import build_step, init_state, run_rollout
from tests.tiny import lines
from tests.train.test_step import ADAMW
from tests.tune.sums import summing

LENGTH, ROWS, NEW, EOS = 12, 8, 6, 257
TEXTS = llama(vocab=258, layers=2, width=16, heads=2, kv_heads=1, mlp=24, context=LENGTH, dropout=0.1)
COMPUTE = replace(Compute("float32", "float32").resolve("cpu"), unroll=1)
ENDS = Sampling(logit_bias=((EOS, 4.0),))  # a random model seldom ends
KEY = jax.random.key(0)
MESHES = [{"data": 8}, {"fsdp": 2, "tensor": 2, "context": 2}]


def batches(file: Path, method: Any) -> Batches:
    return prepare(summing(file).data, LENGTH, ROWS, objective=method.objective, tokenizer=Bytes().make([]))


@partial(jax.jit, static_argnums=0)
def _loss(learner: Any, *given: Any) -> Any:
    return learner.loss(*given)


@partial(jax.jit, static_argnums=0)
def _gradient(learner: Any, *given: Any) -> Any:
    return jax.value_and_grad(learner.loss, has_aux=True)(*given)


def _scaled(learner: Any, batch: Any) -> dict[str, Any]:
    """`batch`, each weight as the step scales it."""
    return {n: a / max(a.sum(), 1) if n in learner.weights else a for n, a in batch.items()}


def metrics_of(learner: Any, params: Any, frozen: Any, batch: Any, key: Any = None) -> tuple[float, dict[str, float]]:
    """(loss, metrics), without a gradient to compile."""
    loss, metrics = _loss(learner, params, frozen, _scaled(learner, batch), key)
    return float(loss), {name: float(x) for name, x in metrics.items()}


def gradient_of(learner: Any, params: Any, frozen: Any, batch: Any, key: Any = None) -> Any:
    """(loss, metrics, gradient)."""
    (loss, metrics), gradient = _gradient(learner, params, frozen, _scaled(learner, batch), key)
    return float(loss), {name: float(x) for name, x in metrics.items()}, jax.device_get(gradient)


def times(factor: float, params: Any) -> Any:
    """On the host, where it is no program of each shape."""
    return jax.tree.map(lambda x: np.float32(factor) * np.asarray(x), params)


def stepped(learner: Any, data: Batches, steps: int = 1, mesh: Any = None) -> tuple[Any, dict[str, float]]:
    """The state after so many steps, and the metrics of the last."""
    mesh = mesh or make_mesh({"data": 1}, jax.devices()[:1])
    chain = ADAMW.build(steps, learner.axes())
    state, step = init_state(learner, chain, mesh, 0), build_step(learner, chain, mesh)
    metrics: Any = {}
    for n in range(steps):
        key = jax.random.fold_in(KEY, n)
        batch = run_rollout(learner.rollout, mesh, state.params, state.frozen, data.batch(n), key)
        state, metrics = step(state, batch)
    return state, {name: float(x) for name, x in metrics.items()}


def stopped_and_resumed(
    make: Callable[[], Experiment], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """The metrics of a run that was stopped at step 7 and went on."""
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 7 and [signal.raise_signal(one) for one in once])
        patch.setattr(course, "write_report", lambda folder: folder / "report.html")  # which no test reads
        with pytest.raises(course.Interrupted):
            course.train(make(), folder)
        course.train(make(), folder)
    return lines(folder)
