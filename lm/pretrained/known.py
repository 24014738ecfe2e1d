"""The list of published architectures."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from lm.model.config import ModelConfig
from lm.model.transformer import Params
from lm.pretrained import (
    bert,
    deepseek,
    distilbert,
    gemma,
    gemma4,
    gpt2,
    hybrid,
    llama,
    modernbert,
    phi3,
    qwen_moe,
    relatives,
    roberta,
    t5,
    t5gemma,
)
from lm.pretrained.architecture import Architecture
from lm.pretrained.classifiers import bare, classifier

CLASSIFIERS = tuple(
    classifier(base, f"{name}ForSequenceClassification")
    for base, name in (
        (gpt2.GPT2, "GPT2"),
        (llama.LLAMA, "Llama"),
        (llama.MISTRAL, "Mistral"),
        (llama.MIXTRAL, "Mixtral"),
        (llama.QWEN2, "Qwen2"),
        (llama.QWEN3, "Qwen3"),
        (gemma.GEMMA, "Gemma"),
        (gemma.GEMMA2, "Gemma2"),
    )
)
HEADLESS = tuple(
    bare(base, f"{name}Model")
    for base, name in (
        (gpt2.GPT2, "GPT2"),
        (llama.LLAMA, "Llama"),
        (llama.MISTRAL, "Mistral"),
        (llama.QWEN2, "Qwen2"),
        (llama.QWEN3, "Qwen3"),
    )
) + (gemma.STATES,)
# of encoders: classes of a text, of its tokens
HEADS = tuple(
    head for family in (bert, roberta, distilbert, modernbert) for head in (family.SEQUENCES, family.TOKENS)
) + (*roberta.XLM[2:], *roberta.CAMEMBERT[2:])
# of several that can express a model, the first is written
ARCHITECTURES = (
    gpt2.GPT2,
    llama.LLAMA,
    llama.MISTRAL,
    llama.MIXTRAL,
    llama.QWEN2,
    llama.QWEN3,
    llama.GPT_OSS,
    deepseek.DEEPSEEK_V2,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    gemma.GEMMA3_WITH_VISION,
    gemma.PALIGEMMA,
    t5.T5,
    bert.MASKED,
    bert.BOTH,
    bert.BARE,
    *(roberta.MASKED, roberta.BARE),
    *(distilbert.MASKED, distilbert.BARE),
    *(modernbert.MASKED, modernbert.BARE),
    *(t5.MT5, t5.UMT5, *t5.ENCODERS),
    *(*roberta.XLM[:2], *roberta.CAMEMBERT[:2]),
    *CLASSIFIERS,
    relatives.OLMO2,
    relatives.OLMO3,
    relatives.SMOLLM3,
    relatives.GRANITE,
    phi3.PHI3,
    qwen_moe.QWEN3_MOE,
    qwen_moe.QWEN2_MOE,
    deepseek.DEEPSEEK_V3,
    *(gemma4.GEMMA4, gemma4.GEMMA4_WITH_VISION),
    *(t5gemma.T5GEMMA, t5gemma.T5GEMMA2),
    *(hybrid.QWEN3_NEXT, hybrid.QWEN3_5, hybrid.QWEN3_5_MOE, *hybrid.WITH_VISION),
    *HEADLESS,
    *HEADS,
)
BY_NAME = {a.name: a for a in ARCHITECTURES}
# the start of a name -> what no part of ours computes
NOT_READ = {
    "Gemma3n": "its residual stream is four, mixed by AltUp and LAuReL, and its feed-forwards are sparse",
}


def architecture_of(config: Mapping[str, Any], file: Path) -> Architecture:
    """The architecture that a config.json names. Raises ValueError, listing the known ones, for another, and where
    model_type is not its."""
    kind, names = config.get("model_type"), config.get("architectures")
    names = names or [a.name for a in ARCHITECTURES if a.model_type == kind] or [kind]
    name = str(names[0] if isinstance(names, list) else names)
    if reason := next((NOT_READ[start] for start in NOT_READ if name.startswith(start)), ""):
        raise ValueError(f"{file}: {name} is not read: {reason}")
    if name not in BY_NAME:
        raise ValueError(f"{file}: unknown architecture {name!r}: {hint(name)}known: {', '.join(BY_NAME)}")
    architecture = BY_NAME[name]
    if kind is not None and kind != architecture.model_type:  # by which transformers chooses the class
        raise ValueError(
            f"{file}: model_type={kind!r} with architectures={names!r}: expected {architecture.model_type!r}, or the "
            "architecture of that type"
        )
    return architecture


def hint(name: str) -> str:
    """The architectures that an unknown `name` may mean: those of its family, or of one that is spelled nearly so; a
    family of another number, or whose name begins as another's, is another. Empty where there is none."""
    family = _family(name)
    own = [known for known in BY_NAME if _family(known) == family]
    if own:
        return f"of {family} it is {' or '.join(own)}; "
    head = name.removeprefix(family)
    likeness = {known: _likeness(family, _family(known)) for known in BY_NAME}
    near = [known for known in BY_NAME if likeness[known] == max(likeness.values()) >= 0.85]
    best = [known for known in near if known.removeprefix(_family(known)) == head] or near
    return f"did you mean {' or '.join(best)}? " if best else ""


def _family(name: str) -> str:
    """The part of an architecture's name before what it is for."""
    return re.sub(r"(LMHead|DoubleHeads|For[A-Z]\w*)?(Model)?$", "", name, count=1)


def _likeness(family: str, known: str) -> float:
    """How alike two families are spelled, from 0 to 1; 0 where they are others by their number or their beginning."""
    a, b = family.lower(), known.lower()
    others = re.sub(r"\D", "", a) != re.sub(r"\D", "", b) or a != b and (a.startswith(b) or b.startswith(a))
    return 0.0 if others else SequenceMatcher(None, a, b).ratio()


def expressed(
    cfg: ModelConfig, params: Params, first: Architecture | None = None
) -> tuple[Architecture, ModelConfig, Params]:
    """An architecture that can express a model (in the standard parametrisation, as others have it), with what it can
    express of it: modules of multi-token prediction are left out, with a warning, where none has them. Arguments and
    errors as `architecture_for`."""
    known = any(one.can_express(cfg) for one in ARCHITECTURES)
    cfg, params = (cfg, params) if known else without_modules(cfg, params)
    return architecture_for(cfg, first), cfg, params


def without_modules(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """A model without modules of multi-token prediction. Warns where it had some."""
    if not cfg.multi_token:
        return cfg, params
    warnings.warn("modules of multi-token prediction are not written: this format has none", stacklevel=2)
    return replace(cfg, multi_token=None), {name: tree for name, tree in params.items() if name != "multi_token"}


def architecture_for(cfg: ModelConfig, first: Architecture | None = None) -> Architecture:
    """An architecture that can express `cfg`, `first` if it can. Raises ValueError where none can."""
    for architecture in ([first] if first else []) + list(ARCHITECTURES):
        if architecture.can_express(cfg):
            return architecture
    raise ValueError(
        f"none of {', '.join(BY_NAME)} can express this model, so it cannot be exported: "
        "choose its parts as in one of their families in lm/model/families.py"
    )
