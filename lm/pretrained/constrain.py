"""Texts of a loaded model that keep to a grammar (lm/decode/grammar.py), drawn by the engine."""

from collections.abc import Iterator
from dataclasses import replace

from lm.decode.engine import Engine, Request
from lm.decode.generate import NonFiniteLogits
from lm.decode.grammar import Grammar, Grammars
from lm.decode.sampling import NONE, Sampling
from lm.pretrained.model import Pretrained


def constrained(
    model: Pretrained,
    prompt: str,
    grammar: Grammar,
    max_new_tokens: int = 128,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    n: int = 1,
) -> Iterator[list[str]]:
    """`n` continuations of `prompt` that are of `grammar`, or the beginnings of such texts where `max_new_tokens` end
    them; streamed as `Pretrained.stream` does.

    Raises ValueError where the grammar is wrong or has no text, for a model without a tokenizer or with an encoder, or
    for a prompt that does not fit."""
    ids, tokenizer = model.encode(prompt), model.tokenizer
    assert tokenizer
    cfg, stop = model.config, tuple(model.stop_ids)
    constraint = Grammars(tokenizer, cfg.vocab, stop).constraint(grammar, continues=True)
    if cfg.vocab > tokenizer.vocab_size:
        sampling = replace(sampling, vocab_size=tokenizer.vocab_size)
    engine = Engine(*model.decoder, slots=n, length=min(cfg.context, len(ids) + max_new_tokens))
    request = Request(ids, max_new_tokens, sampling, stop, seed, grammar=constraint)
    rows = {engine.submit(replace(request, index=i)): tokenizer.decoder_after(ids) for i in range(n)}
    while engine.busy:
        new = dict.fromkeys(rows, "")
        for output in engine.step():
            if output.token != NONE:
                new[output.number] += rows[output.number].push(output.token)
            elif output.finish_reason == "not finite":
                raise NonFiniteLogits
            elif output.finish_reason == "grammar":
                raise ValueError("the grammar outgrew the limits of llguidance: take a smaller one")
        yield list(new.values())
    yield [text.close() for text in rows.values()]
