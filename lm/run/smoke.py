"""A smoke test: any experiment, over in two minutes on a laptop, with every part of it still in place.

Families, methods, optimizers, data and tokenizers stay what they are; numbers become small by the rules here. So a page
that is to cost a week on a cluster is tried to its report first. What is learned in so few steps says nothing.
"""

import dataclasses
from functools import partial
from typing import Any

from lm.data.captions import Captions
from lm.data.mixture import Data
from lm.data.objective import ObjectiveContext
from lm.experiment import Experiment
from lm.model.config import ModelConfig, Vision
from lm.sharding.rules import Layout
from lm.text.tokenizer import TokenizerFile

STEPS, ROWS, LENGTH = 20, 4, 128  # rows are those of a device and micro-batch, of LENGTH tokens at most
MICRO_BATCHES, EVAL_TOKENS, SAMPLE_TOKENS = 2, 4096, 16
# the most of each size of a model, all rounded down to a power of two, so that what divided still divides
SIZES = {
    "width": 64,
    **dict.fromkeys(("mlp", "shared"), 128),
    **dict.fromkeys(("heads", "value_heads", "experts"), 4),
    **dict.fromkeys(("kv_heads", "key_heads", "top_k", "groups", "top_groups", "group_best"), 2),
    **dict.fromkeys(("head_dim", "key_dim", "value_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    "qk_rope_head_dim": 8,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 32),
    "window": 64,
}


def smoke(experiment: Experiment) -> Experiment:
    """`experiment` by the rules that `lm train --help` tells. Nothing becomes larger than it is but the batch, which is
    of ROWS a device and micro-batch."""
    e = experiment
    length, steps, accumulate = min(e.length, LENGTH), min(e.steps, STEPS), min(e.accumulate, MICRO_BATCHES)
    vocab = vocabulary(e)
    shrink = partial(smaller, vocab=vocab)
    evaluations = {
        name: dataclasses.replace(one, method=one.method and one.method.smaller(shrink), rows=min(one.rows, ROWS))
        for name, one in e.evaluations.items()
    }
    return dataclasses.replace(
        e,
        name=f"{e.name}-smoke",
        start=None,
        data=_with_tokenizer(e),
        model=smaller(e.model, vocab, any(isinstance(one, Captions) for one in e.data.mixture.sources.values())),
        method=e.method.smaller(shrink),
        evaluations=evaluations,
        optimizer=dataclasses.replace(e.optimizer, schedule=_shorter(e.optimizer.schedule, steps)),
        steps=steps,
        seq_len=length,
        batch_tokens=length * accumulate,
        rows_per_device=float(ROWS * accumulate),
        accumulate=accumulate,
        mesh={},
        layout=Layout(),
        embedding="",
        log_every_steps=min(e.log_every_steps, STEPS // 4),
        eval_every_steps=min(e.eval_every_steps, STEPS // 2),
        eval_tokens=min(e.eval_tokens or EVAL_TOKENS, EVAL_TOKENS),
        checkpoint_every_steps=steps,
        keep_last=1,
        keep_best=0,
        sample_tokens=min(e.sample_tokens, SAMPLE_TOKENS),
    )


def _with_tokenizer(experiment: Experiment) -> Data:
    """The data, with the tokenizer of the model that is the start: a smaller model cannot start from it."""
    e = experiment
    if not e.start or isinstance(e.data.tokenizer, TokenizerFile):
        return e.data
    return dataclasses.replace(e.data, tokenizer=TokenizerFile(e.start.path))


def vocabulary(experiment: Experiment) -> int:
    """The ids that the data and the objectives need, as far as the tokenizer declares how many pieces it has; else
    those of the model."""
    pieces = 0 if experiment.start else getattr(experiment.data.tokenizer, "vocab_size", 0)
    asked = [one.objective or (one.method or experiment.method).objective for one in experiment.evaluations.values()]
    objectives = [experiment.method.objective, *asked]
    extra = max(one.extra_tokens(ObjectiveContext(experiment.length)) for one in objectives)
    return min(experiment.model.vocab, pieces + extra) if pieces else experiment.model.vocab


def smaller(model: ModelConfig, vocab: int, images: bool = False) -> ModelConfig:
    """`model` with its parts at SIZES, as few layers as have all of its kinds, and no more than `vocab` ids; its
    images too, unless the data has `images`."""
    small = _shrink({field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    layers = max(2, len(model.first_layers) + len(model.pattern))
    return dataclasses.replace(
        model,
        **small,
        layers=min(model.layers, layers),
        encoder_layers=min(model.encoder_layers, layers),
        encoder=smaller(model.encoder, vocab) if model.encoder else None,
        vision=_smaller_vision(model.vision, min(model.vocab, vocab), images) if model.vision else None,
        context=min(model.context, LENGTH),
        vocab=min(model.vocab, vocab),
    )


def _smaller_vision(vision: Vision, vocab: int, images: bool) -> Vision:
    """Vision with a small tower, and unless the data has images, for small ones."""
    size = min(vision.image_size, 2 * vision.pool * vision.patch_size)
    ids = {name: min(getattr(vision, name), vocab - 1) for name in ("image_token", "begin_token", "end_token")}
    others = {} if images else {"image_size": size, **ids}
    patches = (others.get("image_size", vision.image_size) // vision.patch_size) ** 2
    tower = dataclasses.replace(smaller(vision.tower, vision.tower.vocab), context=patches)
    return dataclasses.replace(vision, tower=tower, **others)


def _shrink(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of `fields` that are sizes, or parts that have some, made small."""
    new = {name: _at_most(old, SIZES[name]) for name, old in fields.items() if name in SIZES}
    return new | {name: _shrunk(old) for name, old in fields.items() if name not in SIZES and _shrunk(old) != old}


def _shrunk(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_shrunk, part))
    if not dataclasses.is_dataclass(part) or isinstance(part, type | ModelConfig):
        return part
    changes = _shrink({field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
    return dataclasses.replace(part, **changes)


def _at_most(size: int, most: int) -> int:
    return min(1 << (size.bit_length() - 1), most) if size else 0


def _shorter(schedule: Any, steps: int) -> Any:
    """`schedule` with a warm-up and a decay that fit in so many steps."""
    most = {"warmup_steps": steps // 4, "decay_steps": steps // 2}
    return dataclasses.replace(
        schedule, **{name: min(getattr(schedule, name), n) for name, n in most.items() if hasattr(schedule, name)}
    )
