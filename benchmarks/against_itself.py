"""An arm against itself: how often a study finds a difference where there is none.

    python -m benchmarks.against_itself [--studies 200] [--seeds 3] [--steps 4] [--arms 8]

Each study trains arms at the same seeds: one seed means the same first values and the same order of the data, in all
of them. The arms are the same but for the numbers that dropout draws, so that their losses differ and none is better.
The trainings are real (a transformer of width 8 on this library's own code); all run in one program, vectorised. A
paired test of two arms at the 5% level has to find a difference in 5% of the studies, and its interval has to be
narrower than that of the same runs taken as unpaired.

A sweep compares with the arm that did best in the same runs. Of sweeps of all `--arms` arms, no more than 5% may tell
any arm from the best, and the best arm's interval has to hold the mean of all runs in at least 95%.
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
from lm.study.statistics import Measured, paired, pairwise, student, unpaired
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Constant
from lm.train.step import fresh_state, step_function

TOGETHER = 400  # runs of each of two arms in one call
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
        return five_percent(len(self.p_values))

    @property
    def text(self) -> str:
        low, high = self.expected
        gains = np.quantile(self.gains, [0.05, 0.5, 0.95])
        return (
            f"{self.found} of {len(self.p_values)} studies of an arm against itself have p < 0.05 ({low} to {high} are "
            "5% within binomial error); the paired interval is narrower than the unpaired one by a factor of "
            f"{gains[1]:.2f} (median; {gains[0]:.2f} to {gains[2]:.2f} in 90% of them)"
        )


@dataclass(frozen=True)
class Swept:
    """What `sweeps` of equal arms gave: how many told an arm from the best, and in how many the best arm's interval
    missed the mean of all; `uncorrected` are the same two without a correction for the choice of the best."""

    sweeps: int
    found: int
    missed: int
    uncorrected: tuple[int, int]

    @property
    def holds(self) -> bool:
        """Whether both are at most 5%, but for binomial error."""
        return max(self.found, self.missed) <= five_percent(self.sweeps)[1]

    @property
    def text(self) -> str:
        return (
            f"{self.found} of {self.sweeps} sweeps of equal arms tell one from the best, and the best arm's interval "
            f"misses the mean in {self.missed} (at most {five_percent(self.sweeps)[1]} are 5% within binomial error); "
            f"{self.uncorrected[0]} and {self.uncorrected[1]} without a correction for the choice"
        )


def five_percent(studies: int) -> tuple[int, int]:
    """The least and the most that 5% of so many studies are, but for binomial error."""
    low, high = stats.binom.ppf([SURE / 2, 1 - SURE / 2], studies, 0.05)
    return int(low), int(high)


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


def losses(e: Experiment, studies: int, seeds: int, arms: int) -> np.ndarray:
    """Held-out losses [studies, arms, seeds] of that many trainings."""
    data = prepare(e.data, e.length, e.rows, e.seed, e.method.objective)
    learner = e.build(Transformer(e.model, e.compute.resolve("cpu")), data)
    optimizer = e.optimizer.build(e.steps, learner.axes())
    step = step_function(learner, optimizer)
    heldout = next(data.heldout("code", 256))
    heldout["weights"] /= heldout["weights"].sum()

    def run(seed: jax.Array, draws: jax.Array, batches: Any) -> jax.Array:
        state = fresh_state(learner, optimizer, 0.0, jax.random.key(seed))
        state, _ = jax.lax.scan(lambda state, batch: (step(state, batch, draws)[0], None), state, batches)
        return learner.loss(state.params, (), heldout, None)[0]

    every_arm = jax.jit(jax.vmap(jax.vmap(run, (None, 0, None))))  # over seeds, and over the arms of each
    every = np.arange(studies * seeds, dtype=np.uint32)
    found = []
    together = max(1, 2 * TOGETHER // arms)
    for part in np.split(every, range(together, len(every), together)):
        draws = np.stack([part + np.uint32(i * len(every)) for i in range(arms)], axis=1)  # no two runs draw the same
        found.append(every_arm(part, draws, _stacked(data, part, e.steps)))
    return np.asarray(jnp.concatenate(found), np.float64).reshape(studies, seeds, arms).swapaxes(1, 2)


def _stacked(data: Batches, seeds: np.ndarray, steps: int) -> Any:
    """The batches of every seed, [seeds, steps, B, T] each: one after the other in the order of one run, so that no two
    seeds read the same."""
    every = [data.batch(int(seed) * steps + step) for seed in seeds for step in range(steps)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *every)
    return jax.tree.map(lambda x: x.reshape(len(seeds), steps, *x.shape[1:]), stacked)


def against_itself(reached: np.ndarray) -> Found:
    """Compare the first two arms that `reached` these losses [studies, arms, seeds], as a study's report does."""
    p_values, gains = [], []
    for a, b, *_ in reached:
        low, high, p = paired(a, b)
        wide = unpaired(a, b)
        p_values.append(p)
        gains.append((wide[1] - wide[0]) / (high - low))
    return Found(np.array(p_values), np.array(gains))


def sweeps_of_equals(reached: np.ndarray) -> Swept:
    """What sweeps conclude whose equal arms `reached` these losses [sweeps, arms, seeds], as their reports do."""
    count, arms, seeds = reached.shape
    found, missed, alone = 0, 0, [0, 0]
    for losses in reached:
        best, *others = losses[np.argsort(losses.mean(axis=1))]
        measured = [Measured(str(i), dict(enumerate(by_seed))) for i, by_seed in enumerate([best, *others])]
        found += bool((pairwise(measured)[0, 1:] < 0.05).any())
        missed += reached.mean() not in student(best, arms)
        alone[0] += min(paired(best, other)[2] for other in others) * (arms - 1) < 0.05
        alone[1] += reached.mean() not in student(best)
    return Swept(count, found, missed, (alone[0], alone[1]))


def main() -> int:
    """Read the arguments, and tell; 1 where it is not 5%, or pairing narrows nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_itself", description=__doc__)
    for name, default in (("studies", 200), ("seeds", 3), ("steps", 4), ("arms", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    reached = losses(experiment(options.steps), options.studies, options.seeds, options.arms)
    found, swept = against_itself(reached), sweeps_of_equals(reached)
    print(found.text, swept.text, sep="\n")
    low, high = found.expected
    return int(not (low <= found.found <= high and np.median(found.gains) > 1 and swept.holds))


if __name__ == "__main__":
    raise SystemExit(main())
