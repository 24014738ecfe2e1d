"""Learning from a model's own completions: what every such method stands on, as a few verbs.

`draw` continues a batch's prompts by the current parameters and asks the reward functions; `score` computes the
log-probabilities of its tokens under parameters, as training does; the method makes of both what its `loss` reads. A
batch is a pure function of the seed, the step and the parameters: a run that was killed draws it again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lm.data.prompts import prompt_as_read, prompt_ids, prompt_text
from lm.decode.generate import NonFiniteLogits
from lm.decode.layout import layers_apart
from lm.decode.rollout import Completions, complete
from lm.decode.sampling import Sampling
from lm.machine import processes
from lm.model.transformer import Params, Transformer
from lm.sharding.batches import broadcast, on_host
from lm.train.logprobs import READ, token_logprobs, token_scores
from lm.train.loss import Metrics
from lm.train.method import Batch, BatchReader, Learner, Sample, SampleSettings, Writer
from lm.tune import samples
from lm.tune.on_policy_method import PER_ROW, OnPolicyMethod
from lm.tune.reward_functions import Completion, RewardFunction, Rewards

if TYPE_CHECKING:
    from lm.data.loader import Batches

SCORED = ("tokens", "segment_ids", "positions")
SHOWN = 4  # held-out prompts a source whose completions are samples


class SamplerMismatch(ValueError):
    """The sampler's log-probabilities are not those of training, in all processes of the run."""

    shared = True


class Drawn(NamedTuple):
    """A host batch of prompts and completions, and the total reward of each row [B], NaN where it has none."""

    batch: Batch
    totals: np.ndarray


class OnPolicy(Learner):
    """A method that learns from completions of the prompts in `data`, of which this process reads the `local_rows`."""

    weights = {"weights": "tokens", "row_weights": "completions"}

    def __init__(
        self,
        model: Transformer,
        data: "Batches | None",
        method: OnPolicyMethod,
        local_rows: np.ndarray | None = None,
    ):
        self.model, self.data, self.method, self.local_rows = model, data, method, local_rows
        self.sampler = layers_apart(model) if model.compute.backend == "cpu" else model
        self.updates, self.reads_start = method.updates, method.reads_reference
        self.scorer = Transformer(method.scorer_model, model.compute) if method.scorer_model else None
        self.rewards = Rewards(method.rewards, method.reward_seconds, method.on_reward_error)
        if data is not None:
            check_columns(data, method.rewards)

    @property
    def models(self) -> Mapping[str, Transformer]:
        return {"scorer": self.scorer} if self.scorer else {}

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        """`frozen` is the model of the start where there is a reference, and beside its parameters the scorer's."""
        params, frozen = super().begin(start, key, models)
        return params, {**(frozen or {}), **models} if models else frozen

    def frozen_axes(self) -> Any:
        own, scorers = super().frozen_axes(), {role: model.axes() for role, model in self.models.items()}
        return {**(own or {}), **scorers} if scorers else own

    def batches(self, step: int) -> BatchReader:
        assert self.data
        return self.data.batches(step, self.local_rows)

    # ---------------------------------------------------------------- the verbs

    def draw(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Drawn:
        """A host batch with completions by `params`, and what they are worth."""
        completions = self.sample(params, batch, key)
        batch = filled(batch, completions)
        real = np.flatnonzero(batch["row_weights"] > 0)
        table = np.full((len(batch["record"]), len(self.rewards.names)), np.nan, np.float32)
        processes.on_first_process("reward", lambda: np.copyto(table, self._reward(batch, completions, real)))
        table = broadcast(table)
        totals, known = self.rewards.total(table), dict(zip(self.rewards.names, table.T, strict=True))
        if self.scorer:
            known["scorer"] = last_scores(self.scorer, frozen["scorer"], batch)
            totals = np.nan_to_num(totals) + known["scorer"]
        known["reward"] = totals
        columns = {name: np.nan_to_num(values).astype(np.float32) for name, values in known.items()}
        return Drawn({**batch, **columns}, totals)

    def sample(self, params: Params, batch: Batch, key: jax.Array) -> Completions:
        """Completions of a batch's prompts, on the host. Raises NonFiniteLogits where a token could not be drawn."""
        assert self.data
        tokenizer, width = self.data.tokenizer, batch["tokens"].shape[1] - self.method.max_new_tokens
        sampling = within(self.method.sampling, tokenizer.vocab_size, self.model.cfg.vocab)
        prompts = (batch[name][:, :width] for name in ("tokens", "segment_ids"))
        options = self.method.max_new_tokens, sampling, tuple(tokenizer.stop_ids)
        drawn = Completions(*on_host(complete(self.sampler, params, *prompts, key, *options)))
        if not drawn.finite:
            raise NonFiniteLogits()
        return drawn

    def score(self, params: Params, batch: Batch) -> np.ndarray:
        """The log-probabilities [B, T] of a batch's targets under `params`, at the sampling's temperature."""
        read = {name: batch[name] for name in READ}
        logprobs = on_host(_logprobs(self.model, params, read, self.method.sampling.temperature))
        return np.where(batch["weights"] > 0, logprobs, 0).astype(np.float32)

    def _reward(self, batch: Batch, completions: Completions, rows: np.ndarray) -> np.ndarray:
        """float64 [B, K]: what each reward function gives, NaN outside of `rows`."""
        assert self.data
        records = [self.data.record(number) for number in batch["record"][rows].tolist()]
        texts = [self.text(completions, row) for row in rows.tolist()]
        table = np.full((len(batch["record"]), len(self.rewards.names)), np.nan)
        table[rows] = self.rewards([record["prompt"] for record in records], texts, records)
        return table

    def text(self, completions: Completions, row: int) -> Completion:
        """The completion of a row, without its stop token."""
        assert self.data
        length, stopped = int(completions.lengths[row]), bool(completions.stopped[row])
        ids = completions.tokens[row, : length - stopped].tolist()
        return Completion.of(self.data.tokenizer.decode(ids), length, stopped)

    def compared(self, params: Params, batch: Batch) -> Batch:
        """`batch` with its log-probabilities under `params` (`old_logprobs`), and how far the sampler's are from them
        (`sampler_gap`). Raises SamplerMismatch where they are too far apart."""
        old, real = self.score(params, batch), batch["weights"] > 0
        gap = float(np.abs(np.where(real, old - batch["policy_logprobs"], 0)).max(initial=0.0))
        if not gap <= self.method.max_sampler_gap:
            raise SamplerMismatch(
                f"a token's log-probability is {gap:.3g} nats apart between sampling and training, more than "
                f"max_sampler_gap={self.method.max_sampler_gap:g}: stopped. compute.matmul=float32 brings them together"
            )
        return {**batch, "old_logprobs": old, "sampler_gap": np.full(len(old), gap, np.float32)}

    # ---------------------------------------------------------------- held-out prompts

    def heldout_rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """One completion of each prompt."""
        return self.draw(params, frozen, on_host(batch), key).batch

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        rows = batch["row_weights"]
        return {"completions": rows.sum(), **{name: (rows * batch[name]).sum() for name in self.logged}}

    @property
    def logged(self) -> tuple[str, ...]:
        """The arrays of a batch, one number a row, whose means are metrics."""
        return (*PER_ROW, *self.method.sources)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        return {one.name: sums[one.name] / max(sums["completions"], 1.0) for one in self.method.measures}

    def check_samples(self, settings: SampleSettings) -> None:
        assert self.data
        samples.check_prompts(self.data.tokenizer, self.model.cfg, settings.prompts, samples.reply_prompt)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """Completions of held-out prompts, with what they are worth, and replies to the experiment's prompts."""
        assert self.data
        for source in self.data.sources:
            batch = next(self.data.heldout(source, SHOWN))
            for number in batch["record"][batch["row_weights"] > 0].tolist():
                yield self._sample(model, settings, source, self.data.record(number))
        yield from samples.replies(model, settings, self.data.tokenizer)

    def _sample(self, model: Writer, settings: SampleSettings, source: str, record: Mapping[str, Any]) -> Sample:
        assert self.data
        tokenizer, method = self.data.tokenizer, self.method
        sampling = within(method.sampling, tokenizer.vocab_size, self.model.cfg.vocab)
        streamed = model.stream_ids([prompt_ids(record, tokenizer)], method.max_new_tokens, sampling, settings.seed)
        ids = [id for (new,) in streamed for id in new]
        stopped = len(ids) < method.max_new_tokens
        text = Completion.of(tokenizer.decode(ids), len(ids) + stopped, stopped)
        table = self.rewards([record["prompt"]], [text], [record])
        each = ", ".join(f"{name} {value:g}" for name, value in zip(self.rewards.names, table[0], strict=True))
        prompt = prompt_text(record["prompt"])
        worth = f"\n\n[reward {self.rewards.total(table)[0]:g}: {each}]" if each else ""
        read = prompt_as_read(record, tokenizer) + text
        return Sample(f"{source}, held out", prompt, f"{prompt}{text}{worth}", read)


@partial(jax.jit, static_argnums=(0, 3))
def _logprobs(model: Transformer, params: Params, batch: Batch, temperature: float) -> jax.Array:
    return token_logprobs(model, params, batch, temperature).logprobs


@partial(jax.jit, static_argnums=0)
def score_tokens(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    """The scores [B, T] of each token of a batch's SCORED arrays."""
    return token_scores(model, params, batch)


def last_scores(scorer: Transformer, params: Params, batch: Batch) -> np.ndarray:
    """The scores [B] of a reward model of the last token of each completion in a host batch."""
    rows, length = np.arange(len(batch["tokens"])), batch["tokens"].shape[1]
    last = length - 1 - np.argmax(batch["weights"][:, ::-1] > 0, axis=1)  # of which the last token is the target
    read = {name: batch[name].copy() for name in SCORED}
    at = np.minimum(last + 1, length - 1)
    read["tokens"][rows, at], read["segment_ids"][rows, at] = batch["targets"][rows, last], 1
    read["positions"][rows, at] = at
    scores = np.asarray(on_host(score_tokens(scorer, params, read)))[rows, at]
    return np.where(batch["weights"].any(1), scores, 0).astype(np.float32)


def check_columns(data: "Batches", functions: Sequence[RewardFunction]) -> None:
    """Raises ValueError, naming the record, where one lacks a field that a reward function reads."""
    wanted = {column: function for function in functions for column in function.columns}
    for where, record in data.records() if wanted else ():
        if missing := [column for column in wanted if record.get(column) is None]:
            name = wanted[missing[0]].name
            raise ValueError(f"{where}: the record has no {missing[0]!r}, which the reward {name} reads")


def within(sampling: Sampling, pieces: int, vocab: int) -> Sampling:
    """`sampling` of the tokenizer's `pieces` alone, where the model's vocabulary has more ids."""
    return sampling if vocab <= pieces else replace(sampling, vocab_size=pieces)


def filled(batch: Batch, completions: Completions) -> Batch:
    """A host batch of prompts [B, T] with their `completions` behind them; arrays as Rollouts describes them."""
    tokens, segments = batch["tokens"].copy(), batch["segment_ids"].copy()
    new = {name: np.zeros(tokens.shape, np.float32) for name in ("weights", "sampler_logprobs", "policy_logprobs")}
    targets, start = np.zeros_like(tokens), segments.sum(1)
    rows, nth = np.nonzero(np.arange(completions.tokens.shape[1]) < completions.lengths[:, None])
    at = start[rows] + nth  # the place of a token; its target is one before
    targets[rows, at - 1] = completions.tokens[rows, nth]
    new["weights"][rows, at - 1] = 1
    new["sampler_logprobs"][rows, at - 1] = completions.logprobs[rows, nth]
    new["policy_logprobs"][rows, at - 1] = completions.policy_logprobs[rows, nth]
    read = nth < completions.lengths[rows] - 1  # nothing follows the last
    tokens[rows[read], at[read]], segments[rows[read], at[read]] = completions.tokens[rows[read], nth[read]], 1
    cut = (~completions.stopped & (batch["row_weights"] > 0)).astype(np.float32)
    return {
        **batch,
        **new,
        "tokens": tokens,
        "targets": targets,
        "segment_ids": segments,
        "positions": np.where(segments > 0, np.arange(tokens.shape[1]), 0).astype(np.int32),
        "completion_length": completions.lengths.astype(np.float32),
        "truncated": cut,
    }


def corrected(batch: Batch, most: float) -> Batch:
    """`batch` with the importance weights, up to `most`, of the distribution that was sampled from."""
    old, sampler, real = batch["old_logprobs"], batch["sampler_logprobs"], batch["weights"] > 0
    return {**batch, "importance_weights": importance_weights(old, sampler, real, most)}


def importance_weights(policy: np.ndarray, sampler: np.ndarray, real: np.ndarray, most: float) -> np.ndarray:
    """min(policy / sampler, most) of each real token, from log-probabilities [B, T]; 1 for others (truncated importance
    sampling, Ionides 2008). Where top-k or top-p left tokens out, it is the mass of those that were kept."""
    ratio = np.exp(np.where(real, policy - sampler, 0))
    return np.minimum(ratio, most).astype(np.float32)
