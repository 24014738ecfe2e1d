"""What a run shows of its model at the end: prompts that go on, or held-out text that is mended.

A model of CausalLM writes on from the experiment's prompts. One of another objective gets the beginning of each
source's held-out text as the objective asks it: masks are filled, missing spans and what follows a prefix are written,
always the likeliest token.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.denoise import end_id, mode_id, sentinel_id
from lm.data.loader import Batches
from lm.data.masked import MaskedLM, mask_id
from lm.data.objective import Batch, CausalLM
from lm.experiment import Experiment
from lm.model.inputs import Inputs
from lm.pretrained import Pretrained
from lm.text.tokenizer import Tokenizer

Logits = Callable[[jax.Array], jax.Array]  # tokens [1, T] -> logits [1, T, V]


class Sample(NamedTuple):
    """`prompt` is what the model got, `text` that with what it made of it; `title` says so."""

    title: str
    prompt: str
    text: str


def samples(experiment: Experiment, model: Pretrained, data: Batches) -> Iterator[Sample]:
    """The samples of a finished run."""
    if not isinstance(experiment.objective, CausalLM):
        yield from mended(experiment, model, data)
        return
    for prompt in experiment.prompts:
        room = experiment.model.context - len(model.encode(prompt))
        streamed = model.stream(prompt, min(experiment.sample_tokens, room), experiment.sampling, experiment.seed)
        yield Sample(f"{prompt!r} goes on", prompt, prompt + "".join(rows[0] for rows in streamed))


def mended(experiment: Experiment, model: Pretrained, data: Batches) -> Iterator[Sample]:
    """The first held-out row of each source, as it was asked and as it was answered."""
    for source in data.sources if experiment.sample_tokens else []:
        batch = next(data.heldout(source, 1))
        answer = _filled if isinstance(experiment.objective, MaskedLM) else _continued
        prompt, text = answer(model, data, batch, experiment.sample_tokens)
        if text:
            yield Sample(f"{source}, mended", prompt, f"{prompt}\n\n{text}")


def _filled(model: Pretrained, data: Batches, batch: Batch, most: int) -> tuple[str, str]:
    """The row with its chosen tokens in brackets, and with the likeliest ones there."""
    there, asked = batch["segment_ids"][0] > 0, batch["weights"][0] > 0
    if not asked.any():
        return "", ""
    guesses = np.asarray(_logits(model, batch)(jnp.asarray(batch["tokens"])))[0, :, : data.context.vocab].argmax(-1)
    shown, tokenizer = batch["tokens"][0], data.tokenizer
    hidden = {mask_id(data.context): "…"}
    return (
        spelled(tokenizer, shown[there], asked[there], hidden),
        spelled(tokenizer, np.where(asked, guesses, shown)[there], asked[there], hidden),
    )


def _continued(model: Pretrained, data: Batches, batch: Batch, most: int) -> tuple[str, str]:
    """What the row gives to read, and the likeliest tokens after it: at most `most`, up to the end."""
    asked = np.flatnonzero(batch["weights"][0])
    if not len(asked):
        return "", ""
    first, tokens = int(asked[0]), batch["tokens"].copy()
    logits, written = _logits(model, batch), list[int]()
    end = end_id(getattr(data.objective, "sentinels", 1), data.context)
    for at in range(first, min(first + most, int(asked[-1]) + 1)):
        written.append(int(np.asarray(logits(jnp.asarray(tokens)))[0, at].argmax()))
        if written[-1] == end:
            break
        tokens[0, at + 1 : at + 2] = written[-1]
    read = batch["tokens"][0, : first + 1]
    if "encoder_tokens" in batch:
        read = batch["encoder_tokens"][0][batch["encoder_segment_ids"][0] > 0]
    names = special_names(data)
    return tuple(spelled(data.tokenizer, ids, None, names) for ids in (read, np.array(written)))  # type: ignore[return-value]


def _logits(model: Pretrained, batch: Batch) -> Logits:
    """The model's logits where everything but the tokens is as in `batch`."""
    inputs = Inputs.of({name: jnp.asarray(array) for name, array in batch.items()})
    forward = jax.jit(lambda params, tokens: model.model(params, replace(inputs, tokens=tokens)))
    return lambda tokens: forward(model.params, tokens)


def special_names(data: Batches) -> dict[int, str]:
    """How the ids after the tokenizer's are shown: <0>, <1>, … for sentinels, then [R], [S], [X]."""
    count = getattr(data.objective, "sentinels", 0)
    if not count:
        return {}
    names = {sentinel_id(count, data.context) - k: f"<{k}>" for k in range(count)}
    return names | {mode_id(m, count, data.context): f"[{name}] " for m, name in enumerate("RSX")}


def spelled(tokenizer: Tokenizer, ids: np.ndarray, marked: np.ndarray | None, names: dict[int, str]) -> str:
    """The text of `ids`; ids after the vocabulary by name, those `marked` in brackets."""
    parts, run = [], list[int]()
    for i, token in enumerate(ids.tolist()):
        is_marked = marked is not None and bool(marked[i])
        if token < tokenizer.vocab_size and token not in names and not is_marked:
            run.append(token)
            continue
        text = names.get(token) or (tokenizer.decode([token]) if token < tokenizer.vocab_size else f"<{token}>")
        parts += [tokenizer.decode(run), f"[{text}]" if is_marked else text]
        run = []
    return "".join([*parts, tokenizer.decode(run)])
