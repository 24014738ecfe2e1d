"""An arm against itself: how often a study finds a difference where there is none.

    python -m benchmarks.against_itself [--studies 200] [--seeds 3] [--steps 4]

Each study trains two arms at the same seeds: one seed means the same first values and the same order of the data, in
both. The arms are the same but for the numbers that dropout draws, so that their losses differ and neither is better.
The trainings are real (a transformer of width 8 on this library's own code); all run in one program, vectorised. A
paired test at the 5% level has to find a difference in 5% of the studies, and its interval has to be narrower than that
of the same runs taken as unpaired.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from lm.data.loader import Batches, prepare
from lm.data.mixture import Data, Mixture
from lm.data.pack import Chunk
from lm.data.source import TextFolder
from lm.experiment import Experiment
from lm.model import families
from lm.model.compute import Compute
from lm.model.transformer import Transformer
from lm.study.statistics import paired, unpaired
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Constant
from lm.train.step import fresh_state, step_function

TOGETHER = 400  # runs in one call
SURE = 1e-4  # of the binomial error


@dataclass(frozen=True)
class Found:
    """What the studies gave: a p-value each, and how many times as wide the unpaired interval is as the paired one."""

    p_values: np.ndarray
    gains: np.ndarray

    @property
    def found(self) -> int:
        """How many studies have p < 0.05."""
        return int((self.p_values < 0.05).sum())

    @property
    def expected(self) -> tuple[int, int]:
        """What 5% of the studies are, but for binomial error."""
        low, high = stats.binom.ppf([SURE / 2, 1 - SURE / 2], len(self.p_values), 0.05)
        return int(low), int(high)

    @property
    def text(self) -> str:
        low, high = self.expected
        gains = np.quantile(self.gains, [0.05, 0.5, 0.95])
        return (
            f"{self.found} of {len(self.p_values)} studies of an arm against itself have p < 0.05 ({low} to {high} are "
            "5% within binomial error); the paired interval is narrower than the unpaired one by a factor of "
            f"{gains[1]:.2f} (median; {gains[0]:.2f} to {gains[2]:.2f} in 90% of them)"
        )


def experiment(steps: int) -> Experiment:
    """What each run trains."""
    code = TextFolder(str(Path(families.__file__).parent), pattern="*.py", heldout=0.3)
    return Experiment(
        name="itself",
        model=families.llama(vocab=258, layers=1, width=8, heads=2, mlp=16, context=16, dropout=0.1),
        data=Data(Mixture({"code": code}, {"code": 1.0}), Bytes(), Chunk()),
        optimizer=AdamW(learning_rate=2e-2, schedule=Constant()),
        compute=Compute("float32", "float32", "plain", flat="no", unroll=1, loss_chunk=0),
        batch_tokens=4 * 16,
        steps=steps,
    )


def losses(e: Experiment, studies: int, seeds: int) -> np.ndarray:
    """Held-out losses [studies, 2 arms, seeds] of that many trainings."""
    data = prepare(e.data, e.length, e.rows, e.seed, e.method.objective)
    learner = e.method.build(Transformer(e.model, e.compute.resolve("cpu")), data)
    optimizer = e.optimizer.build(e.steps, learner.axes())
    step = step_function(learner, optimizer)
    heldout = next(data.heldout("code", 256))
    heldout["weights"] /= heldout["weights"].sum()

    def run(seed: jax.Array, draws: jax.Array, batches: Any) -> jax.Array:
        state = fresh_state(learner, optimizer, 0.0, jax.random.key(seed))
        state, _ = jax.lax.scan(lambda state, batch: (step(state, batch, draws)[0], None), state, batches)
        return learner.loss(state.params, (), (), heldout, None)[0]

    both = jax.jit(jax.vmap(jax.vmap(run, (None, 0, None))))  # over seeds, and over the two arms of each
    every = np.arange(studies * seeds, dtype=np.uint32)
    found = []
    for part in np.split(every, range(TOGETHER, len(every), TOGETHER)):
        draws = np.stack([part, part + np.uint32(len(every))], axis=1)  # no two runs draw the same
        found.append(both(part, draws, _stacked(data, part, e.steps)))
    return np.asarray(jnp.concatenate(found), np.float64).reshape(studies, seeds, 2).swapaxes(1, 2)


def _stacked(data: Batches, seeds: np.ndarray, steps: int) -> Any:
    """The batches of every seed, [seeds, steps, B, T] each: one after the other in the order of one run, so that no two
    seeds read the same."""
    every = [data.batch(int(seed) * steps + step) for seed in seeds for step in range(steps)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *every)
    return jax.tree.map(lambda x: x.reshape(len(seeds), steps, *x.shape[1:]), stacked)


def against_itself(studies: int = 200, seeds: int = 3, steps: int = 4) -> Found:
    """Train all runs of all studies, and compare the arms of each as a study's report does."""
    p_values, gains = [], []
    for a, b in losses(experiment(steps), studies, seeds):
        low, high, p = paired(a, b)
        wide = unpaired(a, b)
        p_values.append(p)
        gains.append((wide[1] - wide[0]) / (high - low))
    return Found(np.array(p_values), np.array(gains))


def main() -> int:
    """Read the arguments, and tell; 1 where it is not 5%, or pairing narrows nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_itself", description=__doc__)
    for name, default in (("studies", 200), ("seeds", 3), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    found = against_itself(**vars(parser.parse_args()))
    print(found.text)
    low, high = found.expected
    return int(not (low <= found.found <= high and np.median(found.gains) > 1))


if __name__ == "__main__":
    raise SystemExit(main())
