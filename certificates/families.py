"""The published architectures, as docs/families.md has them: what is particular in each, certified how, refused what.

    python -m certificates.families docs/families.md

Nothing of it is written by hand: the parts are those of the models that the certificates' configs are read as, and what
is refused are the fields for which `read` accepts a few values alone.
"""

import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certificates.cases import CASES
from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.experts import Experts
from lm.model.mixer import Mixer
from lm.model.output import NoOutput
from lm.model.parts import FeedForward, Norm, RMSNorm
from lm.model.positions import Positions, Rotary
from lm.model.scaling import Scaling
from lm.model.shared_experts import SharedExperts
from lm.model.wiring import PreNorm
from lm.pretrained.architecture import Architecture
from lm.pretrained.fields import NEUTRAL, Fields
from lm.pretrained.gguf_tables import ARCHITECTURES as GGUF
from lm.pretrained.known import ARCHITECTURES, CLASSIFIERS, HEADLESS, HEADS, NOT_READ

HERE = Path(__file__).parent
RECORDED = HERE.parent / "tests" / "pretrained" / "recorded.json"
HEAD = """# Published architectures

`make certificates` wrote this. Each is read from a model directory (`config.json`, safetensors) and written as one;
those with a name under GGUF are read and written as that too. Their parts are values of [lm/model](../lm/model), which
any other model may have; what is not particular is as in Llama: rotary positions, RMSNorm before each branch, a gated
silu, no biases, an output. Certified is equality with transformers {version} ([the table](../certificates/TABLE.md)):
logits, greedy text, a cache, an export that it reads.

Refused is what no part of ours computes: other values of the fields in the last column, in all of them {neutral}, an
unknown field, since it could change the results, and a `quantization_config` other than gpt-oss's, which is unpacked.

| architecture | particular | certified shapes | GGUF | refused but for |
|---|---|---|---|---|
"""


class Asked(Fields):
    """Fields that note for which of them a few values alone are accepted."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        super().__init__(values, "config.json", defaults)
        self.accepted: dict[str, tuple[Any, ...]] = {}

    def expect(self, name: str, *allowed: Any) -> None:
        """Note `allowed`, but for what all refuse, and for sizes that others of the file say."""
        sizes = any(type(value) is int and value > 1 for value in allowed)
        if not sizes and allowed != (NEUTRAL.get(name),):
            self.accepted[name] = allowed
        super().expect(name, *allowed)


def models(architecture: Architecture, recorded: Mapping[str, Any]) -> Iterator[tuple[ModelConfig, Asked]]:
    """The models that the configs of its certificates are read as, and the fields that were asked for."""
    for case in CASES:
        if case.architecture == architecture.name:
            fields = Asked(recorded[case.name]["config"], architecture.defaults)
            yield architecture.read(fields), fields


def parts(cfg: ModelConfig) -> Iterator[str]:
    """What a model has beside Llama's parts."""
    if cfg.has_encoder:
        yield "encoder and decoder"
    if not cfg.causal:
        yield "encoder"
    if cfg.vision is not None:
        yield "a vision tower"
    yield from _norm(cfg.norm)
    for slot in cfg.by_layer:
        if type(slot.wiring) is not PreNorm:
            yield type(slot.wiring).__name__
        yield from _mixer(slot.mixer)
        yield from _positions(slot.positions)
        yield from _ffn(slot.ffn)
        if slot.window:
            yield "windows" if all(one.window for one in cfg.by_layer) else "windows in some layers"
    if cfg.embed_scale != 1:
        yield "scaled embedding"
    if cfg.token_types:
        yield "token types"
    yield from _output(cfg)


def _norm(norm: Norm) -> Iterator[str]:
    if type(norm) is not RMSNorm:
        yield type(norm).__name__
    elif norm.plus_one:
        yield "norms of 1 + w"


def _mixer(mixer: Mixer) -> Iterator[str]:
    if not isinstance(mixer, Attention):
        yield type(mixer).__name__
        return
    if type(mixer) is not Attention:
        yield type(mixer).__name__
    if mixer.bias:
        yield "biases of attention" if mixer.out_bias else "biases of query, key and value"
    if type(mixer.qk_norm) is not Norm:
        yield f"{type(mixer.qk_norm).__name__} of queries and keys"
    if mixer.scale:
        yield "logits of attention of another scale"
    if mixer.softcap:
        yield "soft cap of attention"
    if mixer.sinks:
        yield "sinks"


def _positions(positions: Positions) -> Iterator[str]:
    if type(positions) is Positions:
        yield "no positions in some layers"
    elif type(positions) is not Rotary:
        yield f"{type(positions).__name__} positions"
    if isinstance(positions, Rotary) and type(positions.scaling) is not Scaling:
        yield f"{type(positions.scaling).__name__} scaling"


def _ffn(ffn: FeedForward) -> Iterator[str]:
    if isinstance(ffn, Experts):
        yield type(ffn).__name__
    if isinstance(ffn, SharedExperts):
        yield from (name for name in ("choice_bias", "shared_gate") if getattr(ffn, name))
        yield f"{ffn.scores} scores"
        if ffn.groups > 1:
            yield "groups"
    if (ffn.activation, ffn.gated) != ("silu", True):
        yield f"{'gated ' if ffn.gated else ''}{ffn.activation}"
    if ffn.clamp:
        yield "clamp"
    if ffn.bias:
        yield "biases of the feed-forward"


def _output(cfg: ModelConfig) -> Iterator[str]:
    out = cfg.output
    if isinstance(out, NoOutput):
        yield "no output"
    if out.softcap:
        yield "soft cap of the output"
    if out.scale != 1:
        yield "scaled output"
    if out.transform:
        yield "a transform before the output"
    if out.next_sentence:
        yield "next sentence"


def line(architecture: Architecture, recorded: Mapping[str, Any]) -> str:
    """The line of one architecture."""
    found = list(models(architecture, recorded))
    particular = dict.fromkeys(part for cfg, _ in found for part in parts(cfg))
    accepted = {n: values for _, fields in found for n, values in fields.accepted.items()}
    only = [f"`{name}={' or '.join(map(str, values))}`" for name, values in accepted.items()]
    gguf = [key for key, kind in GGUF.items() if kind.architecture is architecture]
    shapes = str(len(found)) if found else "by a certificate of its own"
    return f"| {architecture.name} | {', '.join(particular)} | {shapes} | {', '.join(gguf)} | {', '.join(only)} |"


def page() -> str:
    """docs/families.md."""
    recorded = json.loads(RECORDED.read_text())
    version = re.search(r"^transformers==(\S+)", (HERE / "requirements.txt").read_text(), re.MULTILINE)
    assert version
    of_others = [a.name for a in (*CLASSIFIERS, *HEADLESS, *HEADS) if not any(c.architecture == a.name for c in CASES)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a text half is read
        lines = [line(a, recorded) for a in ARCHITECTURES if a.name not in of_others]
    rest = f"\n\nOf their parts and fields, with another output or none: {', '.join(of_others)}.\n"
    rest += "".join(f"\n{start} is not read: {reason}." for start, reason in NOT_READ.items()) + "\n"
    neutral = ", ".join(f"`{name}={value}`" for name, value in NEUTRAL.items())
    return HEAD.format(version=version[1], neutral=neutral) + "\n".join(lines) + rest


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
