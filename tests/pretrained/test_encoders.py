"""The config.json of published encoders, as their files have it: the model, and as many parameters as its class has."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm.model import count
from lm.model.config import ModelConfig, Rewired
from lm.model.encoders import modernbert
from lm.model.output import Classifier
from lm.model.positions import LearnedAfter, RelativeByLayer, Rotary
from lm.pretrained.architecture import canonical
from lm.pretrained.known import architecture_of

BERT = dict(
    attention_probs_dropout_prob=0.1,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    hidden_size=768,
    initializer_range=0.02,
    intermediate_size=3072,
    num_attention_heads=12,
    num_hidden_layers=12,
)
ROBERTA = BERT | dict(
    architectures=["RobertaForMaskedLM"],
    bos_token_id=0,
    eos_token_id=2,
    layer_norm_eps=1e-05,
    max_position_embeddings=514,
    model_type="roberta",
    pad_token_id=1,
    type_vocab_size=1,
    vocab_size=50265,
)
XLM = ROBERTA | dict(architectures=["XLMRobertaForMaskedLM"], model_type="xlm-roberta", vocab_size=250002)
XLM |= dict(output_past=True, position_embedding_type="absolute", transformers_version="4.17.0.dev0", use_cache=True)
CAMEMBERT = ROBERTA | dict(architectures=["CamembertForMaskedLM"], model_type="camembert", vocab_size=32005)
CAMEMBERT |= dict(bos_token_id=5, eos_token_id=6, output_past=True)
DISTILBERT = dict(
    activation="gelu",
    architectures=["DistilBertForSequenceClassification"],
    attention_dropout=0.1,
    dim=768,
    dropout=0.1,
    finetuning_task="sst-2",
    hidden_dim=3072,
    id2label={"0": "NEGATIVE", "1": "POSITIVE"},
    initializer_range=0.02,
    label2id={"NEGATIVE": 0, "POSITIVE": 1},
    max_position_embeddings=512,
    model_type="distilbert",
    n_heads=12,
    n_layers=6,
    output_past=True,
    pad_token_id=0,
    qa_dropout=0.1,
    seq_classif_dropout=0.2,
    sinusoidal_pos_embds=False,
    tie_weights_=True,
    vocab_size=30522,
)
MODERNBERT = dict(
    architectures=["ModernBertForMaskedLM"],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=50281,
    classifier_activation="gelu",
    classifier_bias=False,
    classifier_dropout=0.0,
    classifier_pooling="mean",
    cls_token_id=50281,
    decoder_bias=True,
    deterministic_flash_attn=False,
    embedding_dropout=0.0,
    eos_token_id=50282,
    global_attn_every_n_layers=3,
    global_rope_theta=160000.0,
    gradient_checkpointing=False,
    hidden_activation="gelu",
    hidden_size=768,
    initializer_cutoff_factor=2.0,
    initializer_range=0.02,
    intermediate_size=1152,
    layer_norm_eps=1e-05,
    local_attention=128,
    local_rope_theta=10000.0,
    max_position_embeddings=8192,
    mlp_bias=False,
    mlp_dropout=0.0,
    model_type="modernbert",
    norm_bias=False,
    norm_eps=1e-05,
    num_attention_heads=12,
    num_hidden_layers=22,
    pad_token_id=50283,
    position_embedding_type="absolute",
    sep_token_id=50282,
    tie_word_embeddings=True,
    torch_dtype="float32",
    transformers_version="4.47.0.dev0",
    vocab_size=50368,
)
UMT5 = dict(
    architectures=["UMT5ForConditionalGeneration"],
    d_ff=1024,
    d_kv=64,
    d_model=512,
    decoder_start_token_id=0,
    dense_act_fn="gelu_new",
    dropout_rate=0.1,
    eos_token_id=1,
    feed_forward_proj="gated-gelu",
    initializer_factor=1.0,
    is_encoder_decoder=True,
    is_gated_act=True,
    layer_norm_epsilon=1e-06,
    model_type="umt5",
    num_decoder_layers=8,
    num_heads=6,
    num_layers=8,
    output_past=True,
    pad_token_id=0,
    relative_attention_max_distance=128,
    relative_attention_num_buckets=32,
    scalable_attention=True,
    tie_word_embeddings=False,
    tokenizer_class="T5Tokenizer",
    use_cache=True,
    vocab_size=256384,
)


def read(values: dict[str, Any]) -> ModelConfig:
    architecture = architecture_of(values, Path("file"))
    return architecture.read(architecture.fields(json.loads(json.dumps(values)), "file"))


PARAMETERS: list[tuple[dict[str, Any], int]] = [  # as their classes count them, and umT5 with its own output
    (ROBERTA, 124697433),
    (XLM, 278295186),
    (CAMEMBERT, 110655493),
    (DISTILBERT, 66955010),
    (MODERNBERT, 149655232),
    (UMT5, 306601984),
]


@pytest.mark.parametrize(
    ("values", "parameters"), PARAMETERS, ids=lambda x: x["model_type"] if isinstance(x, dict) else ""
)
def test_a_published_config_has_the_parameters_of_its_class(values: dict[str, Any], parameters: int) -> None:
    assert count.parameters(read(values)) == parameters


def test_roberta_s_context_is_less_than_its_rows() -> None:
    cfg = read(ROBERTA)
    assert (cfg.context, cfg.positions, cfg.token_types) == (512, LearnedAfter(offset=2), 1)
    for pad, said in ((None, "None"), (600, "600"), (True, "True")):
        with pytest.raises(
            ValueError, match=f"file: pad_token_id={said} is not supported: expected a number below 513"
        ):
            read({**ROBERTA, "pad_token_id": pad})


def test_the_family_is_the_published_modernbert() -> None:
    sizes = dict(vocab=50368, layers=22, width=768, heads=12, mlp=1152, context=8192)
    cfg = read(MODERNBERT)
    assert canonical(cfg) == canonical(modernbert(**sizes))
    assert isinstance(cfg.first_layers[0], Rewired) and not cfg.by_layer[0].window
    kinds = [(slot.window, slot.positions) for slot in cfg.by_layer[:4]]
    assert kinds == [(0, Rotary(160000.0)), (65, Rotary(10000.0)), (65, Rotary(10000.0)), (0, Rotary(160000.0))]
    sequences = read({**MODERNBERT, "architectures": ["ModernBertForSequenceClassification"]})
    head = Classifier(scores=2, pooling="mean", transform="gelu", transform_bias=False, transform_norm=True)
    assert sequences.output == head
    for field, value in (
        ("layer_types", ["x"] * 22),
        ("rope_parameters", 3),
        ("rope_scaling", {}),
        ("rope_parameters", {"x": 1}),
    ):
        with pytest.raises(ValueError, match=f"file: {field}=.* is not supported"):
            read({**MODERNBERT, field: value})


def test_umt5_is_scaled_unless_it_says_that_it_is_not_tied() -> None:
    assert read(UMT5).output.scale == 1 and isinstance(read(UMT5).positions, RelativeByLayer)
    assert read({**UMT5, "tie_word_embeddings": True}).output.scale == 512**-0.5
