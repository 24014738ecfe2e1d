"""A learner of which a part is trained: some parameters themselves, others by a low-rank change, the rest frozen.

`params` has the trained ones in the tree of all, and the factors in place of adapted matrices; `frozen` is {"base": the
rest of that tree, adapted matrices included, "method": what the method itself freezes}. Both are joined to the method's
parameters before it reads them, as a pure function, so that every method works unchanged.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import jax

from lm.model.adapted import Adapted, merged
from lm.model.parametrisation import Axes
from lm.model.quantized import Storage, dense
from lm.model.transformer import Params, Transformer
from lm.train.loss import Metrics
from lm.train.method import Batch, BatchReader, Learner, ModelReader, Sample, SampleSettings, Writer
from lm.tune.paths import at, by_path, nested

if TYPE_CHECKING:
    from lm.data.loader import Batches


class Adapter(Protocol):
    """How a matrix is changed by factors, such as a LoRA (lm/tune/lora.py)."""

    @property
    def dropout(self) -> float: ...

    @property
    def storage(self) -> Storage: ...

    def factor_axes(self, axes: Axes) -> dict[str, tuple[str | None, ...]]: ...

    def factors(self, w: jax.Array, axes: Axes, key: jax.Array) -> dict[str, jax.Array]: ...

    def adapt(self, w: Any, factors: Mapping[str, jax.Array], axes: Axes, key: jax.Array | None) -> Adapted: ...


class Partial(Learner):
    """`learner`, of whose parameters those at the paths `trained` are trained, and those at `adapted` by factors of
    `adapter`."""

    adapts = True

    def __init__(
        self,
        learner: Learner,
        trained: frozenset[str],
        adapter: Adapter | None = None,
        adapted: frozenset[str] = frozenset(),
    ):
        self.learner, self.model, self.weights = learner, learner.model, learner.weights
        self.trained, self.adapter, self.adapted = trained, adapter, adapted
        self.updates = learner.updates
        self._axes: dict[str, Any] = by_path(learner.axes())

    @property
    def models(self) -> Mapping[str, Transformer]:
        return self.learner.models

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        params, frozen = self.learner.begin(start, key, models)
        leaves = by_path(params)
        moving = {path: leaf for path, leaf in leaves.items() if path in self.trained}
        base = {path: leaf for path, leaf in leaves.items() if path not in self.trained}
        for path in sorted(self.adapted):
            assert self.adapter
            storage, axes = self.adapter.storage, self._axes[path]
            base[path] = storage.keep(leaves[path], axes)
            factors = self.adapter.factors(dense(storage.read(base[path])), axes, _fold(key, path))
            moving |= {f"{path}/{name}": factor for name, factor in factors.items()}
        return nested(moving), {"base": nested(base), "method": self._kept(frozen)}

    def axes(self) -> Params:
        moving = {path: axes for path, axes in self._axes.items() if path in self.trained}
        for path in sorted(self.adapted):
            assert self.adapter
            moving |= {f"{path}/{name}": axes for name, axes in self.adapter.factor_axes(self._axes[path]).items()}
        return nested(moving)

    def frozen_axes(self) -> Any:
        base = {path: axes for path, axes in self._axes.items() if path not in self.trained}
        for path in self.adapted:
            assert self.adapter
            base[path] = self.adapter.storage.axes(base[path])
        return {"base": nested(base), "method": self._kept(self.learner.frozen_axes())}

    def _kept(self, frozen: Any) -> Any:
        """What the method freezes; of the model of the start what is trained itself, since `base` has the rest."""
        if not self.learner.reads_start:
            return frozen
        kept = {path: leaf for path, leaf in by_path(frozen).items() if path in self.trained or path not in self._axes}
        return nested(kept)

    def _frozen(self, frozen: Any) -> Any:
        """What the method froze, the model of the start without adapters."""
        if not self.learner.reads_start:
            return frozen["method"]
        leaves, kept = by_path(frozen["base"]), by_path(frozen["method"])
        start = {path: (kept if path in self.trained else leaves).get(path) for path in self._axes}
        for path in self.adapted:
            assert self.adapter
            start[path] = dense(self.adapter.storage.read(at(frozen["base"], path)))
        return nested(kept | start)

    def join(self, params: Params, base: Params, key: jax.Array | None = None) -> Params:
        """The method's parameters; matrices of layers that are adapted as `Adapted`, others as arrays. `key` is of the
        adapters' dropout, None for none."""
        moving, leaves = by_path(params), by_path(base)
        joined = {path: (moving if path in self.trained else leaves).get(path) for path in self._axes}
        for path in self.adapted:
            assert self.adapter
            names = self.adapter.factor_axes(self._axes[path])
            factors = {name: moving[f"{path}/{name}"] for name in names}
            own = _fold(key, path) if key is not None and self.adapter.dropout else None
            kept = self.adapter.storage.read(at(base, path))
            one = self.adapter.adapt(kept, factors, self._axes[path], own)
            joined[path] = one if "layers" in self._axes[path] else _without_dropout(path, one)
        return nested(joined)

    def model_params(self, params: Params, frozen: Any) -> Params:
        joined = jax.tree.map(merged, self.join(params, frozen["base"]), is_leaf=lambda x: isinstance(x, Adapted))
        return self.learner.model_params(joined, self._frozen(frozen))

    # ---------------------------------------------------------------- the method's, of what is joined

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        return self.learner.loss(self.join(params, frozen["base"], key), self._frozen(frozen), batch, key)

    def advance(self, frozen: Any, batch: Batch) -> Any:
        return {**frozen, "method": self.learner.advance(frozen["method"], batch)}

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        return self.learner.evaluate(self.join(params, frozen["base"]), self._frozen(frozen), batch)

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.learner.rollout(self.join(params, frozen["base"]), self._frozen(frozen), batch, key)

    def heldout_rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return self.learner.heldout_rollout(self.join(params, frozen["base"]), self._frozen(frozen), batch, key)

    @property
    def has_rollout(self) -> bool:
        return self.learner.has_rollout

    def prepare(self, steps: int, models: ModelReader) -> None:
        self.learner.prepare(steps, models)

    def batches(self, step: int) -> BatchReader:
        return self.learner.batches(step)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        return self.learner.measure(sums, data, source)

    def baselines(self, data: "Batches") -> dict[str, dict[str, float]]:
        return self.learner.baselines(data)

    def check_samples(self, settings: SampleSettings) -> None:
        self.learner.check_samples(settings)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        return self.learner.samples(model, settings)


def _fold(key: jax.Array, path: str) -> jax.Array:
    """A key of `path`'s own."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def _without_dropout(path: str, one: Adapted) -> jax.Array:
    """The matrix of an adapter outside of the layers."""
    if one.key is not None:
        raise ValueError(f"{path} is no layer's, so that its adapter has no dropout: set trains.dropout=0")
    return one.merged
