"""SigLIP's tower and a connector, as the vision of a text model: their part of config.json and of the tensors."""

from collections.abc import Container
from typing import Any

from lm.model.config import ModelConfig, Vision
from lm.model.families import siglip
from lm.model.parts import FeedForward, LayerNorm
from lm.pretrained.architecture import ACTIVATION, attention_of, hf_activation, read_sizes, require, same
from lm.pretrained.bert import dense, norm
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Convolution, Row, row

SIZES = dict(layers="num_hidden_layers", width="hidden_size", heads="num_attention_heads", mlp="intermediate_size")
TOWER, TEXT, PROJECTOR = "vision_tower.vision_model.", "language_model.", "multi_modal_projector."
AT = TOWER + "encoder.layers.{i}."
# names of several versions of transformers -> those of the published files
RENAMED = (
    ("model.language_model.", TEXT + "model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", PROJECTOR),
    (TOWER, "vision_tower."),
    ("vision_tower.", TOWER),
    (TEXT + "lm_head.", "lm_head."),
    ("lm_head.", TEXT + "lm_head."),
)
# what transformers calls modules in memory, as adapters do, -> the published files' names; the first of each is written
IN_MEMORY = (
    ("model.language_model.", TEXT + "model."),
    ("model.vision_tower.", TOWER),
    ("model.vision_tower.vision_model.", TOWER),  # until transformers 5
    ("model.multi_modal_projector.", PROJECTOR),
    ("lm_head", TEXT + "lm_head"),
)
HEAD = r"vision_tower\.(vision_model\.)?head\."  # a pooler of the tower's own, which no connector reads


LAYERS = "vision/layers/*/"
ROWS = [
    row("vision/stem/patches", TOWER + "embeddings.patch_embedding.weight", Convolution()),
    same("vision/stem/patches_bias", TOWER + "embeddings.patch_embedding.bias"),
    same("vision/stem/positions", TOWER + "embeddings.position_embedding.weight"),
    *norm(LAYERS + "attention_norm", AT + "layer_norm1"),
    *dense(LAYERS + "query", AT + "self_attn.q_proj"),
    *dense(LAYERS + "key", AT + "self_attn.k_proj"),
    *dense(LAYERS + "value", AT + "self_attn.v_proj"),
    *dense(LAYERS + "out", AT + "self_attn.out_proj", inputs=2),
    *norm(LAYERS + "ffn_norm", AT + "layer_norm2"),
    *dense(LAYERS + "up", AT + "mlp.fc1"),
    *dense(LAYERS + "down", AT + "mlp.fc2"),
    *norm("vision/connector/norm", TOWER + "post_layernorm"),
]


def in_memory(name: str) -> str:
    """The name of a published file's tensor or module in transformers' model; without vision it is the same."""
    return next((own + name.removeprefix(file) for own, file in IN_MEMORY if name.startswith(file)), name)


def in_file(theirs: Container[str], name: str) -> str:
    """The name in the published files, which are `theirs`, of one in transformers' model."""
    if name in theirs:
        return name
    found = (file + name.removeprefix(own) for own, file in IN_MEMORY if name.startswith(own))
    return next((one for one in found if one in theirs), name)


def inside(rows: list[Row]) -> list[Row]:
    """The rows of a text model, named as those of one with vision."""
    return [r._replace(theirs=TEXT + r.theirs) for r in rows]


def read(fields: Fields) -> ModelConfig:
    """The tower of a vision_config. Raises ValueError for one that is not SigLIP's."""
    fields.expect("model_type", "siglip_vision_model")
    known, patch = read_sizes(fields, SIZES), fields.integer("patch_size")
    size, channels = fields.integer("image_size"), fields.integer("num_channels")
    if channels != 3:
        raise fields.unsupported("num_channels", channels, "3")
    fields.expect("attention_dropout", 0, 0.0)
    for name in ("vision_use_head", "projection_dim", "projector_hidden_act", "num_image_tokens", "vocab_size"):
        fields.take(name, None)
    activation = fields.choose("hidden_act", ACTIVATION)
    eps, patches = float(fields.number("layer_norm_eps")), (size // patch) ** 2
    fields.finish()
    return siglip(**known, patches=patches, eps=eps, ffn=FeedForward(known["mlp"], activation, bias=True))


def vision(fields: Fields, tower: ModelConfig, **parts: Any) -> Vision:
    """The tower of `fields` with its connector, `parts` of Vision."""
    sizes = {name: fields.integer(name) for name in ("image_size", "patch_size")}
    return Vision(tower=tower, **sizes, **parts)


def write(vision: Vision) -> dict[str, Any]:
    """The vision_config that `read` reads. Raises ValueError for a tower that is not SigLIP's."""
    tower = vision.tower
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": attention_of(tower).heads,
        "intermediate_size": tower.ffn.mlp,
        "hidden_act": hf_activation(tower.ffn.activation),
        "layer_norm_eps": require(tower.norm, LayerNorm).eps,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": vision.channels,
        "vision_use_head": False,
    }
