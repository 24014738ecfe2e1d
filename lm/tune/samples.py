"""Samples of a model: continuations of prompts, replies to them, and reconstructions of held-out rows.

A reconstruction fills the objective's masks, or writes its missing spans or what follows a prefix, always with the
likeliest token.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.denoise import end_id, mode_id, sentinel_id
from lm.data.masked import MaskedLM, mask_id
from lm.data.objective import Batch
from lm.decode.generate import check_prompts as check_ids
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.text.chat import apply_chat_template, encode_chat_prompt
from lm.text.tokenizer import Tokenizer
from lm.train.method import Sample, SampleSettings, Writer

if TYPE_CHECKING:
    from lm.data.loader import Batches

SHOWN = 40  # characters of a prompt in a message
INSPECTED, AROUND = 128, 8  # tokens of a row that are looked into, and what they leave of it to those around a text
Logits = Callable[[jax.Array], jax.Array]  # tokens [1, T] -> logits [1, T, V]


def check_prompts(
    tokenizer: Tokenizer,
    model: ModelConfig,
    prompts: tuple[str, ...],
    encode: Callable[[Tokenizer, str], list[int]] = lambda tokenizer, prompt: tokenizer.encode_prompt(prompt),
) -> None:
    """Raises ValueError, naming the prompt, for one that the model cannot continue by a token, as `encode` gives its
    ids."""
    for prompt in prompts:
        try:
            check_ids([encode(tokenizer, prompt)], model.vocab, model.context, 1)
        except ValueError as error:
            shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}…"
            raise ValueError(f"prompts: {shown!r}: {error}") from None


def continuations(model: Writer, settings: SampleSettings) -> Iterator[Sample]:
    """Each prompt and what the model writes after it."""
    for prompt in settings.prompts:
        room = model.model.cfg.context - len(model.encode(prompt))
        streamed = model.stream(prompt, min(settings.sample_tokens, room), settings.sampling, settings.seed)
        text = prompt + "".join(rows[0] for rows in streamed)
        yield Sample(f"{prompt!r}, continued", prompt, text, text)


def reply_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of `prompt` as a user's message, by the tokenizer's chat template where it has one."""
    if not tokenizer.chat_template:
        return tokenizer.encode_prompt(prompt)
    return encode_chat_prompt(tokenizer, _as_user(prompt))


def _as_user(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def replies(model: Writer, settings: SampleSettings, tokenizer: Tokenizer) -> Iterator[Sample]:
    """Each prompt and the model's reply."""
    vocab = tokenizer.vocab_size if model.model.cfg.vocab > tokenizer.vocab_size else 0
    sampling = replace(settings.sampling, vocab_size=vocab)
    for prompt in settings.prompts if settings.sample_tokens else ():
        ids = reply_prompt(tokenizer, prompt)
        most = min(settings.sample_tokens, model.model.cfg.context - len(ids))
        written = [id for (new,) in model.stream_ids([ids], most, sampling, settings.seed) for id in new]
        read, reply = prompt, tokenizer.decode(written)
        if tokenizer.chat_template:
            read = apply_chat_template(tokenizer, _as_user(prompt), True)
        yield Sample(f"{prompt!r}, answered", prompt, f"{prompt}\n\n{reply}", read + reply)


def reconstructions(model: Writer, settings: SampleSettings, data: "Batches") -> Iterator[Sample]:
    """The first held-out row of each source: the objective's input, and the model's output."""
    for source in data.sources if settings.sample_tokens else []:
        batch = next(data.heldout(source, 1))
        reconstruct = fill_masks if isinstance(data.objective, MaskedLM) else write_targets
        prompt, text, read = reconstruct(model, data, batch, settings.sample_tokens)
        if text:
            read = read[: min(INSPECTED, data.context.seq_len - AROUND)]
            inspect = render_ids(data.tokenizer, read, None, _marker_names(data))
            yield Sample(f"{source}, reconstructed", prompt, f"{prompt}\n\n{text}", inspect)


def fill_masks(model: Writer, data: "Batches", batch: Batch, most: int) -> tuple[str, str, np.ndarray]:
    """The row with its target positions in brackets, and with the likeliest tokens there; and its ids,
    with a mask for every target."""
    real, targets = batch["segment_ids"][0] > 0, batch["weights"][0] > 0
    if not targets.any():
        return "", "", targets
    guesses = np.asarray(_logits(model, batch)(jnp.asarray(batch["tokens"])))[0, :, : data.context.vocab].argmax(-1)
    tokens, tokenizer = batch["tokens"][0], data.tokenizer
    names = {mask_id(data.context): "…"}
    return (
        render_ids(tokenizer, tokens[real], targets[real], names),
        render_ids(tokenizer, np.where(targets, guesses, tokens)[real], targets[real], names),
        np.where(targets, mask_id(data.context), tokens)[real],
    )


def write_targets(model: Writer, data: "Batches", batch: Batch, most: int) -> tuple[str, str, np.ndarray]:
    """The row's input, and the likeliest tokens after it: at most `most`, up to the end; and the input's ids."""
    targets = np.flatnonzero(batch["weights"][0])
    if not len(targets):
        return "", "", targets
    first, tokens = int(targets[0]), batch["tokens"].copy()
    logits, written = _logits(model, batch), list[int]()
    end = end_id(getattr(data.objective, "sentinels", 1), data.context)
    for at in range(first, min(first + most, int(targets[-1]) + 1)):
        written.append(int(np.asarray(logits(jnp.asarray(tokens)))[0, at].argmax()))
        if written[-1] == end:
            break
        tokens[0, at + 1 : at + 2] = written[-1]
    read = batch["tokens"][0, : first + 1]
    if "encoder_tokens" in batch:
        read = batch["encoder_tokens"][0][batch["encoder_segment_ids"][0] > 0]
    names = special_names(data)
    prompt, text = (render_ids(data.tokenizer, ids, None, names) for ids in (read, np.array(written)))
    return prompt, text, read


def _logits(model: Writer, batch: Batch) -> Logits:
    """The model's logits where everything but the tokens is as in `batch`."""
    inputs = Inputs.of({name: jnp.asarray(array) for name, array in batch.items()})
    forward = jax.jit(lambda params, tokens: model.model(params, replace(inputs, tokens=tokens)))
    return lambda tokens: forward(model.params, tokens)


def _marker_names(data: "Batches") -> dict[int, str]:
    """The names that control ids and ids of gaps have in a text that is read."""
    markers = data.objective.markers(data.context)
    return {**data.tokenizer.controls, **{id: name for name, id in markers.items()}}


def special_names(data: "Batches") -> dict[int, str]:
    """How the ids after the tokenizer's are shown: <0>, <1>, … for sentinels, then [R], [S], [X]."""
    count = getattr(data.objective, "sentinels", 0)
    if not count:
        return {}
    names = {sentinel_id(count, data.context) - k: f"<{k}>" for k in range(count)}
    return names | {mode_id(m, count, data.context): f"[{name}] " for m, name in enumerate("RSX")}


def render_ids(tokenizer: Tokenizer, ids: np.ndarray, marked: np.ndarray | None, names: dict[int, str]) -> str:
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
