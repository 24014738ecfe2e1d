"""Vectors of texts as the modules beside a model say: against the formulas, and refused where they are not known."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.model.transformer import Params, Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.files import TensorToWrite, write
from lm.pretrained.sentences import FLAGS, POOLINGS, Vectors, read
from tests.pretrained.small import BERT, BY_NAME, checkpoint

TYPE = "sentence_transformers.models."
TEXTS = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22]]
DENSE = np.random.default_rng(3).standard_normal((5, 32)).astype(np.float32)


class Letters:
    """A tokenizer of numbers, which ends texts with `end`."""

    def __init__(self, end: tuple[int, ...] = ()):
        self.end = end

    def encode_prompt(self, text: str) -> list[int]:
        return [*(int(word) for word in text.split()), *self.end]


def modules(folder: Path, *kinds: str, pooling: dict[str, Any] | None = None, **transformer: Any) -> Path:
    """A folder's modules of these kinds."""
    names = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    paths = [
        dict(idx=i, name=str(i), path=p, type=TYPE + kind) for i, (p, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(paths))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": False, **transformer}))
    for path, kind in zip(names[1:], kinds[1:], strict=True):
        (folder / path).mkdir()
        if kind == "Pooling":
            (folder / path / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
        if kind == "Dense":
            activation = "torch.nn.modules.activation.Tanh"
            said = dict(in_features=32, out_features=5, bias=False, activation_function=activation)
            (folder / path / "config.json").write_text(json.dumps(said))
            write(folder / path, [TensorToWrite("linear.weight", DENSE.shape, lambda: DENSE)], 1 << 40)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    model = load(checkpoint(BY_NAME[BERT], tmp_path_factory.mktemp("bert")))
    return replace(model, tokenizer=Letters())  # type: ignore[arg-type]


def embedded(model: Pretrained, vectors: Vectors) -> np.ndarray:
    return replace(model, vectors=vectors).embed([" ".join(map(str, ids)) for ids in TEXTS])


def states(model: Pretrained) -> list[np.ndarray]:
    """The last hidden states of each text alone."""
    return [np.asarray(hidden(model.model, model.params, np.array([ids])), np.float64) for ids in TEXTS]


@partial(jax.jit, static_argnums=0)
def hidden(model: Transformer, params: Params, ids: np.ndarray) -> jax.Array:
    return model.hidden(params, ids).x[0]


POOLED = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (x * np.arange(1, len(x) + 1)[:, None]).sum(0) / np.arange(1, len(x) + 1).sum(),
    "lasttoken": lambda x: x[-1],
}


@pytest.mark.parametrize("name", POOLINGS)
def test_each_pooling_is_its_formula(name: str, bert: Pretrained, tmp_path: Path) -> None:
    """By both ways of saying it."""
    wanted = np.stack([POOLED[name](x) for x in states(bert)])
    for i, said in enumerate(({FLAGS[name]: True, "word_embedding_dimension": 32}, {"pooling_mode": name})):
        folder = tmp_path / str(i)
        folder.mkdir()
        vectors = read(modules(folder, "Transformer", "Pooling", pooling=said), 32)
        np.testing.assert_allclose(embedded(bert, vectors), wanted, atol=2e-6)


def test_poolings_are_joined_and_pass_the_modules_behind_them(bert: Pretrained, tmp_path: Path) -> None:
    kinds = ("Transformer", "Pooling", "Dense", "Dropout", "Normalize")
    vectors = read(modules(tmp_path, *kinds), 32)
    dense = np.tanh(np.stack([x.mean(0) for x in states(bert)]) @ DENSE.T)
    wanted = dense / np.linalg.norm(dense, axis=-1, keepdims=True)
    np.testing.assert_allclose(embedded(bert, vectors), wanted, atol=2e-6)
    assert vectors.size_of(bert.config) == 5
    both = Vectors(pooling=("cls", "mean"))
    found = embedded(bert, both)
    assert found.shape == (3, 64) == (3, both.size_of(bert.config))
    np.testing.assert_array_equal(found[:, 32:], embedded(bert, Vectors()))


def test_a_text_is_cut_where_the_modules_say(bert: Pretrained, tmp_path: Path) -> None:
    """It keeps what its tokenizer ends it with, and that alone; a model without modules is read as before, by the mean
    of all states."""
    vectors = read(modules(tmp_path, "Transformer", "Pooling", max_seq_length=3), 32)
    assert vectors.longest(bert.config) == 3 and Vectors().longest(bert.config) == bert.config.context
    for end, kept in ((), "5 6 7"), ((9,), "5 6 9"), ((8, 9), "5 8 9"):
        ended = replace(bert, vectors=vectors, tokenizer=Letters(end))  # type: ignore[arg-type]
        np.testing.assert_allclose(ended.embed(["5 6 7 8 9"]), bert.embed([kept]), atol=2e-6)
    assert read(tmp_path / "3", 32) == Vectors()


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "most"),
    [({}, {"model_max_length": 24}, 24), (dict(max_seq_length=3), {"model_max_length": 24}, 3)]
    + [({}, {"model_max_length": 1e30}, 0), ({}, {}, 0)],
)
def test_the_longest_text_may_be_said_by_the_tokenizer(
    transformer: dict[str, Any], tokenizer: dict[str, Any], most: int, tmp_path: Path
) -> None:
    """As files since sentence-transformers 6 have it."""
    modules(tmp_path, "Transformer", "Pooling", **transformer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert read(tmp_path, 32).length == most


def prompts(folder: Path, **said: Any) -> Path:
    """Modules with prompts of these fields."""
    modules(folder, "Transformer", "Pooling")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"__version__": {}, **said}))
    return folder


def test_prompts_stand_before_texts(bert: Pretrained, tmp_path: Path) -> None:
    """The one of default where none is named, and none at all where that is said."""
    given = prompts(tmp_path, prompts={"query": "11 12 ", "document": None}, default_prompt_name="query")
    model = replace(bert, vectors=read(given, 32))
    np.testing.assert_array_equal(model.embed(["5 6"]), bert.embed(["11 12 5 6"]))
    np.testing.assert_array_equal(model.embed(["5 6"], prompt="query"), bert.embed(["11 12 5 6"]))
    for name in ("document", ""):
        np.testing.assert_array_equal(model.embed(["5 6"], prompt=name), bert.embed(["5 6"]))
    with pytest.raises(ValueError, match="prompt='passage': the prompts beside this model are 'query', 'document'"):
        model.embed(["5"], prompt="passage")
    with pytest.raises(ValueError, match="prompt='query': the prompts beside this model are none"):
        bert.embed(["5"], prompt="query")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (dict(prompts=["query: "]), r"prompts=\['query: '\] is not supported: expected an object of texts"),
        (
            dict(prompts={"query": ""}, default_prompt_name="q"),
            "default_prompt_name='q' is not supported: exp.* 'query'",
        ),
        (dict(truncate_dim=8), "field truncate_dim=8 is not known"),
    ],
)
def test_prompts_that_are_none_are_refused(said: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error):
        read(prompts(tmp_path, **said), 32)


def test_load_reads_them(tmp_path: Path) -> None:
    folder = modules(checkpoint(BY_NAME[BERT], tmp_path), "Transformer", "Pooling", "Normalize", max_seq_length=8)
    vectors = load(folder).vectors
    assert (vectors.pooling, vectors.length, len(vectors.steps)) == (("mean",), 8, 1)


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (("Transformer", "Pooling", "LSTM"), {}, "modules Transformer, Pooling, LSTM: expected Transformer, then Pool"),
        (("Transformer",), {}, "modules Transformer: expected Transformer, then Pooling"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode": "median"},
            "pooling_mode='median' is not supported: expected cls",
        ),
        (("Transformer", "Pooling"), {"include_prompt": False}, "include_prompt=False is not supported: expected True"),
        (("Transformer", "Pooling"), {"sharpness": 2}, "field sharpness=2 is not known"),
        (("Transformer", "Pooling", "Dense", "Dense"), {}, "of vectors of 5: expected .* of 5"),
    ],
)
def test_what_is_not_known_is_refused(kinds: tuple[str, ...], pooling: Any, said: str, tmp_path: Path) -> None:
    modules(tmp_path, *kinds, pooling=pooling)
    with pytest.raises(ValueError, match=said):
        read(tmp_path, 32)
