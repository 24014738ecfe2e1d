"""How a text's vector is made of a model's last hidden states: the modules of a sentence-transformers folder, which
stand beside the model (modules.json). Without them it is the mean of the states.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.config import ModelConfig
from lm.model.parts import ACTIVATIONS
from lm.pretrained.fields import Fields, read_json, read_objects
from lm.pretrained.files import Safetensors

MODULES, TRANSFORMER = "modules.json", "sentence_bert_config.json"
SILENT = ("transformer_task", "modality_config", "module_output_name", "unpad_inputs")  # of sentence_bert_config.json
TOKENIZER, LONGEST = "tokenizer_config.json", 1 << 40  # where it says that there is no longest text, it says 1e30
PROMPTS = "config_sentence_transformers.json"
MAX = -1e30


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return (x * mask).sum(1) / mask.sum(1)


def _last(x: jax.Array, mask: jax.Array) -> jax.Array:
    at = mask.sum(1, keepdims=True).astype(jnp.int32) - 1
    return jnp.take_along_axis(x, at, axis=1)[:, 0]


def _weighted(x: jax.Array, mask: jax.Array) -> jax.Array:
    return _mean(x, mask * jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[:, None])


# of states x [B, T, D] and the mask [B, T, 1] of padding on the right, both float32
POOLINGS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cls": lambda x, mask: x[:, 0],
    "max": lambda x, mask: jnp.where(mask > 0, x, MAX).max(1),
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda x, mask: (x * mask).sum(1) / jnp.sqrt(mask.sum(1)),
    "weightedmean": _weighted,
    "lasttoken": _last,
}
FLAGS = {name: f"pooling_mode_{name}" for name in POOLINGS}  # by which files before sentence-transformers 5.7 said it
FLAGS |= {name: f"pooling_mode_{name}_token{s}" for name, s in (("cls", ""), ("max", "s"), ("mean", "s"))}
FLAGS["weightedmean"] = "pooling_mode_weightedmean_tokens"
ACTIVATION = {f"torch.nn.modules.activation.{theirs}": ours for theirs, ours in (("Tanh", "tanh"), ("ReLU", "relu"))}
ACTIVATION |= {"torch.nn.modules.activation.GELU": "gelu", "torch.nn.modules.activation.SiLU": "silu"}
ACTIVATION |= {"torch.nn.modules.linear.Identity": ""}


@dataclass(frozen=True)
class Step:
    """What vectors pass after they are pooled; the base class and contract of all."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Vectors [B, D], float32, as the next step reads them."""
        return x

    def size(self, width: int) -> int:
        """The numbers of a vector, of so many before."""
        return width


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalize(Step):
    """Vectors of length 1."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)), 1e-12)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(Step):
    """activation(x kernel + bias), with a `kernel` [D, numbers after] and an activation "" of none."""

    kernel: jax.Array
    bias: jax.Array | None = None
    activation: str = field(default="", metadata=dict(static=True))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.matmul(x, self.kernel, precision=jax.lax.Precision.HIGHEST)
        y = y if self.bias is None else y + self.bias
        return ACTIVATIONS[self.activation](y) if self.activation else y

    def size(self, width: int) -> int:
        return int(self.kernel.shape[1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vectors:
    """Of a text's states what each `pooling` makes, side by side, through `steps`; of its first tokens alone, where
    `length` says how many are read (0: as many as the model reads). `prompts` are texts that may stand before each, by
    their names; that of the name `default` does where none is asked for ("": none does)."""

    steps: tuple[Step, ...] = ()
    pooling: tuple[str, ...] = field(default=("mean",), metadata=dict(static=True))
    length: int = field(default=0, metadata=dict(static=True))
    prompts: tuple[tuple[str, str], ...] = field(default=(), metadata=dict(static=True))
    default: str = field(default="", metadata=dict(static=True))

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """The vectors [B, n] of texts with states x [B, T, D], padded on the right where the mask [B, T] is 0."""
        x, mask = x.astype(jnp.float32), mask[..., None].astype(jnp.float32)
        out = jnp.concatenate([POOLINGS[name](x, mask) for name in self.pooling], axis=-1)
        for step in self.steps:
            out = step(out)
        return out

    def size(self, width: int) -> int:
        """The numbers of a vector, of a model so wide."""
        size = len(self.pooling) * width
        for step in self.steps:
            size = step.size(size)
        return size

    def size_of(self, cfg: ModelConfig) -> int:
        """The numbers of a vector, of the model `cfg` or of its encoder."""
        return self.size((cfg.encoder_config if cfg.has_encoder else cfg).width)

    def longest(self, cfg: ModelConfig) -> int:
        """The most tokens of a text that are read."""
        return min(cfg.context, self.length or cfg.context)

    def prompt(self, name: str | None = None) -> str:
        """What stands before each text: the prompt of that name, or of the default's. Raises ValueError for a name
        that is none."""
        known = {"": "", **dict(self.prompts)}
        if (name := self.default if name is None else name) not in known:
            names = ", ".join(map(repr, dict(self.prompts))) or "none"
            raise ValueError(f"prompt={name!r}: the prompts beside this model are {names}")
        return known[name]


def module_files(folder: Path) -> dict[str, Path]:
    """The files of the modules beside the model in `folder`, by their names there; none where there are no modules."""
    names = (MODULES, TRANSFORMER, PROMPTS)
    inside = [file for path in module_folders(folder) for file in sorted(path.iterdir())]
    found = [folder / name for name in names] + inside if (folder / MODULES).is_file() else []
    return {str(file.relative_to(folder)): file for file in found if file.is_file()}


def module_folders(folder: Path) -> list[Path]:
    """The folders of the modules beside the model in `folder`. Raises ValueError for one that is not inside of it."""
    file = folder / MODULES
    paths = [folder / str(one.get("path", "")) for one in read_objects(file)] if file.is_file() else []
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{file}: a module is in {path}: expected a folder inside of {folder}")
    return [path for path in paths if path != folder and path.is_dir()]


def read(folder: Path, width: int) -> Vectors:
    """What the modules beside the model in `folder` say, of states `width` wide. Raises ValueError for one that is not
    known, or that does not fit."""
    file = folder / MODULES
    if not file.is_file():
        return Vectors()
    kinds = [
        (str(one.get("type", "")).rpartition(".")[2], folder / str(one.get("path", ""))) for one in read_objects(file)
    ]
    names = [name for name, _ in kinds]
    known = ("Pooling", "Normalize", "Dense", "Dropout")
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= {*known[1:]}:
        raise ValueError(
            f"{file}: modules {', '.join(names)}: expected Transformer, then Pooling, then {' or '.join(known[1:])}"
        )
    if kinds[0][1] != folder:
        raise ValueError(f"{file}: its model is in {kinds[0][1]}: move its files to {folder}")
    prompts, default = _prompts(folder)
    vectors = Vectors((), _pooling(kinds[1][1]), _length(folder), prompts, default)
    for name, path in kinds[2:]:
        size = vectors.size(width)
        more = {"Normalize": lambda _p, _s: (Normalize(),), "Dense": _dense, "Dropout": lambda _p, _s: ()}[name](
            path, size
        )
        vectors = replace(vectors, steps=(*vectors.steps, *more))
    return vectors


def _pooling(folder: Path) -> tuple[str, ...]:
    """The names of poolings of its config.json, in the order in which they are joined."""
    fields = Fields(read_json(folder / "config.json"), folder / "config.json")
    for name in ("word_embedding_dimension", "embedding_dimension"):
        fields.take(name, None)
    fields.expect("include_prompt", True)
    flags = tuple(name for name, flag in FLAGS.items() if fields.flag(flag, False))
    given = fields.take("pooling_mode", flags or "mean")
    modes = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not modes or not all(one in POOLINGS for one in modes):
        raise fields.unsupported("pooling_mode", given, " or ".join(POOLINGS))
    fields.finish()
    return modes


def _dense(folder: Path, size: int) -> tuple[Step, ...]:
    """The dense layer in `folder`, of vectors of `size` numbers."""
    fields = Fields(read_json(folder / "config.json"), folder / "config.json")
    inputs, outputs, biased = fields.integer("in_features"), fields.integer("out_features"), fields.flag("bias", True)
    activation = fields.choose("activation_function", ACTIVATION, "torch.nn.modules.activation.Tanh")
    fields.expect("use_residual", False)
    for name in ("module_input_name", "module_output_name"):
        fields.expect(name, "sentence_embedding")
    fields.finish()
    source = Safetensors(folder)
    wanted = {"linear.weight": (outputs, inputs), **({"linear.bias": (outputs,)} if biased else {})}
    found = {name: source.shape(name) for name in source}
    if found != wanted or inputs != size:
        raise ValueError(f"{folder}: tensors {found} of vectors of {size}: expected {wanted} of {size}")
    arrays = {name: jnp.asarray(np.asarray(source.read(name)).astype(np.float32)) for name in wanted}
    return (Dense(arrays["linear.weight"].T, arrays.get("linear.bias"), activation),)


def _length(folder: Path) -> int:
    """The most tokens of a text that are read, control tokens among them; 0 where nothing is said. Raises ValueError
    where texts are to be made lower case beside their tokenizer."""
    most, file = 0, folder / TRANSFORMER
    if file.is_file():
        fields = Fields(read_json(file), file)
        fields.expect("do_lower_case", False)
        most = int(fields.integer("max_seq_length", 0))
        for name in SILENT:
            fields.take(name, None)
        fields.finish()
    return most or _tokenizers_length(folder / TOKENIZER)


def _tokenizers_length(file: Path) -> int:
    """The tokenizer's model_max_length, by which files since sentence-transformers 6 say it; 0 where nothing is."""
    most = read_json(file).get("model_max_length") if file.is_file() else None
    if isinstance(most, bool) or not isinstance(most, int | float) or not 1 <= most < LONGEST:
        return 0
    return int(most)


def _prompts(folder: Path) -> tuple[tuple[tuple[str, str], ...], str]:
    """The prompts beside the model by their names, and the default's name."""
    file = folder / PROMPTS
    if not file.is_file():
        return (), ""
    fields = Fields(read_json(file), file)
    given, default = fields.take("prompts", {}), fields.take("default_prompt_name", "")
    if not isinstance(given, dict) or not all(isinstance(text, str | None) for text in given.values()):
        raise fields.unsupported("prompts", given, "an object of texts")
    if default and default not in given:
        raise fields.unsupported("default_prompt_name", default, " or ".join(map(repr, given)) or "null")
    for name in ("__version__", "similarity_fn_name"):
        fields.take(name, None)
    fields.finish()
    return tuple((name, text or "") for name, text in given.items()), default
