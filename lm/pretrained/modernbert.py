"""ModernBERT (2412.13663): rotary positions with a theta of the windowed and one of the full layers, LayerNorm before
each sublayer but the first, gated feed-forwards, no biases."""

from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig, Rewired
from lm.model.encoders import modernbert
from lm.model.families import head_size
from lm.model.output import Classifier, NoOutput, Output, Unshifted
from lm.model.parts import FeedForward, LayerNorm
from lm.model.positions import Rotary
from lm.pretrained import defaults, rope
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    hf_activation,
    layer_types,
    linear,
    read_sizes,
    require,
    same,
    shortest_pattern,
    window,
)
from lm.pretrained.bert import dense, norm
from lm.pretrained.classifiers import head
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Concatenated, Flattened, Kernel, Row, Transposed, row

SIZES = dict(vocab="vocab_size", layers="num_hidden_layers", width="hidden_size", heads="num_attention_heads")
FULL, WINDOWED = KINDS = ("full_attention", "sliding_attention")
THETAS = ("global_rope_theta", "local_rope_theta")  # in the same order, before transformers 5
AT = "model.layers.{i}."
QKV, WI = "layers/*/query layers/*/key layers/*/value", "layers/*/gate layers/*/up"
BIASES = "layers/*/query_bias layers/*/key_bias layers/*/value_bias"
HEAD = [*dense("head/transform", "head.dense"), *norm("head/transform_norm", "head.norm")]
ROWS = [
    same("stem/tokens", "model.embeddings.tok_embeddings.weight"),
    *norm("stem/norm", "model.embeddings.norm"),
    *norm("layers/*/attention_norm", AT + "attn_norm"),
    row(QKV, AT + "attn.Wqkv.weight", Transposed(Concatenated(Kernel()))),
    row(BIASES, AT + "attn.Wqkv.bias", Concatenated(Flattened())),
    *dense("layers/*/out", AT + "attn.Wo", inputs=2),
    *norm("layers/*/ffn_norm", AT + "mlp_norm"),
    row(WI, AT + "mlp.Wi.weight", Transposed(Concatenated())),
    row("layers/*/gate_bias layers/*/up_bias", AT + "mlp.Wi.bias", Concatenated()),
    *dense("layers/*/down", AT + "mlp.Wo"),
    *norm("head/norm", "model.final_norm"),
]
OUTPUT = [*HEAD, linear("head/kernel", "decoder.weight"), same("head/bias", "decoder.bias")]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of ModernBERT."""
    return [*ROWS, *OUTPUT]


def _read(fields: Fields, output: Output) -> ModelConfig:
    known, (full, local), kinds = read_sizes(fields, SIZES), _rotaries(fields), _layer_kinds(fields)
    mlp, head_dim = fields.integer("intermediate_size"), head_size(known["width"], known["heads"])
    layer_norm = LayerNorm(eps=float(fields.number("norm_eps")), bias=fields.flag("norm_bias"))
    window = int(fields.number("local_attention")) // 2 + 1  # of keys on a side, the query's own among them
    tied = fields.flag("tie_word_embeddings") or isinstance(output, NoOutput)
    first, *later = (LayerKind(window, positions=local.rotary) if kind == WINDOWED else LayerKind() for kind in kinds)
    for name in ("layer_norm_eps", "position_embedding_type"):  # which the published files have and nobody reads
        fields.take(name, None)
    cfg = modernbert(
        **known,
        context=full.context,
        attention=Attention(known["heads"], head_dim, bias=fields.flag("attention_bias")),
        mlp=mlp,
        ffn=FeedForward(mlp, fields.choose("hidden_activation", ACTIVATION), gated=True, bias=fields.flag("mlp_bias")),
        norm=layer_norm,
        embed_norm=layer_norm,
        positions=full.rotary,
        first_layers=(Rewired(first.window, positions=first.positions),),
        pattern=shortest_pattern(later) if later else (LayerKind(),),
        output=output,
        tied=tied,
    )
    fields.finish()
    return cfg


def _layer_kinds(fields: Fields) -> list[str]:
    """The kind of each layer. Raises ValueError for other kinds."""
    layers, every = fields.integer("num_hidden_layers"), fields.integer("global_attn_every_n_layers", 3)
    kinds = fields.take("layer_types")
    if kinds is None:
        return [WINDOWED if i % every else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in KINDS for kind in kinds):
        raise fields.unsupported("layer_types", kinds, f"a list of {layers}, each {' or '.join(KINDS)}")
    return kinds


def _rotaries(fields: Fields) -> list[rope.Positions]:
    """Rotary positions of the full and of the windowed layers."""
    both, scaling = fields.take("rope_parameters"), fields.take("rope_scaling")
    thetas = [float(fields.number(name, above=1)) for name in THETAS]
    both = {} if both is None else both
    if not isinstance(both, dict) or not set(both) <= set(KINDS):
        raise fields.unsupported("rope_parameters", both, f"an object with one for each of {', '.join(KINDS)}")
    if scaling is not None:
        raise fields.unsupported("rope_scaling", scaling, "rope_parameters")
    found = [{} if both.get(kind) is None else both[kind] for kind in KINDS]
    odd = next((values for values in found if not isinstance(values, dict)), None)
    if odd is not None:
        raise fields.unsupported("rope_parameters", odd, "an object")
    return [rope.rotary(fields, values, theta) for values, theta in zip(found, thetas, strict=True)]


def _head(fields: Fields) -> tuple[str, bool]:
    """The activation of the head's product, and whether that has a bias."""
    return fields.choose("classifier_activation", ACTIVATION), fields.flag("classifier_bias")


def read_masked(fields: Fields) -> ModelConfig:
    """The config.json of ModernBERT for masked language modelling."""
    activation, shifted = _head(fields)
    fields.take("classifier_pooling")
    kind = Output if shifted else Unshifted
    return _read(fields, kind(bias=fields.flag("decoder_bias"), transform=activation))


def read_bare(fields: Fields) -> ModelConfig:
    """The config.json of ModernBERT's encoder alone."""
    for name in ("classifier_activation", "classifier_bias", "classifier_pooling", "decoder_bias"):
        fields.take(name)
    return _read(fields, NoOutput())


def read_sequences(fields: Fields) -> Classifier:
    """The head of classes of a text in a config.json."""
    activation, shifted = _head(fields)
    pooling = {name: {"cls": "first"}.get(name, name) for name in ("cls", "mean")}
    pooled = fields.choose("classifier_pooling", pooling)
    return Classifier(pooling=pooled, transform=activation, transform_bias=shifted, transform_norm=True)


def read_tokens(fields: Fields) -> Classifier:
    """The head of classes of each token in a config.json."""
    return replace(read_sequences(fields), pooling="token")


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that they read. Raises ValueError for a config without LayerNorm, or with other positions."""
    layer_norm, output = require(cfg.norm, LayerNorm), cfg.output
    local = next((slot.positions for slot in cfg.slots.values() if slot.window), Rotary())
    both = [require(positions, Rotary) for positions in (cfg.positions, local)]
    return {
        "vocab_size": cfg.vocab,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": attention_of(cfg).heads,
        "intermediate_size": cfg.ffn.mlp,
        "hidden_activation": hf_activation(cfg.ffn.activation),
        "max_position_embeddings": rope.written_context(cfg.context, both[0]),
        "norm_eps": layer_norm.eps,
        "norm_bias": layer_norm.bias,
        "attention_bias": attention_of(cfg).bias,
        "mlp_bias": cfg.ffn.bias,
        "decoder_bias": output.bias,
        "local_attention": 2 * ((window(cfg) or 1) - 1),
        "layer_types": layer_types(cfg),
        "rope_parameters": {kind: rope.written(one) for kind, one in zip(KINDS, both, strict=True)},
        **{name: one.theta for name, one in zip(THETAS, both, strict=True)},
        "tie_word_embeddings": cfg.tied,
        **({} if isinstance(output, NoOutput) else write_head(output.transform, not isinstance(output, Unshifted))),
    }


def write_head(activation: str, shifted: bool) -> dict[str, Any]:
    """The fields that `_head` reads."""
    return {"classifier_activation": hf_activation(activation) if activation else "gelu", "classifier_bias": shifted}


def write_classes(output: Classifier) -> dict[str, Any]:
    """The fields that `read_sequences` and `read_tokens` read."""
    pooling = "mean" if output.pooling == "mean" else "cls"
    return {**write_head(output.transform, output.transform_bias), "classifier_pooling": pooling}


CLASSES, VOCAB = r"^classifier\.", r"^decoder\."
MASKED = Architecture(
    *("ModernBertForMaskedLM", "modernbert", defaults.MODERNBERT, read_masked, write, rows),
    other_heads=CLASSES,
    prefix="model.",
)
BARE = Architecture(
    *("ModernBertModel", "modernbert", defaults.MODERNBERT, read_bare, write, lambda cfg: ROWS),
    other_heads=r"^head\.|" + CLASSES + "|" + VOCAB,
    prefix="model.",
)
SCORES = [*HEAD, *dense("head/score", "classifier")]
SEQUENCES = head(BARE, "ModernBertForSequenceClassification", SCORES, read_sequences, write_classes, VOCAB)
TOKENS = head(BARE, "ModernBertForTokenClassification", SCORES, read_tokens, write_classes, VOCAB)
ALL = (MASKED, BARE, SEQUENCES, TOKENS)
