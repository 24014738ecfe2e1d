"""Vectors of texts as the modules beside a model say: against the formulas, and refused where they are not known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.pretrained import Pretrained, load
from lm.pretrained.files import TensorToWrite, write
from lm.pretrained.sentences import FLAGS, POOLINGS, Vectors, read
from tests.pretrained.small import BERT, BY_NAME, checkpoint

TYPE = "sentence_transformers.models."
TEXTS = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22]]
DENSE = np.random.default_rng(3).standard_normal((5, 32)).astype(np.float32)


class Letters:
    """A tokenizer of numbers."""

    def encode_prompt(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


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
    return [np.asarray(model.model.hidden(model.params, np.array([ids])).x[0], np.float64) for ids in TEXTS]


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
    """It keeps its last token; and a model without modules is read as before, by the mean of all states."""
    vectors = read(modules(tmp_path, "Transformer", "Pooling", max_seq_length=3), 32)
    assert vectors.longest(bert.config) == 3 and Vectors().longest(bert.config) == bert.config.context
    short = replace(bert, vectors=vectors).embed(["5 6 7 8 9"])
    np.testing.assert_allclose(short, bert.embed(["5 6 9"]), atol=2e-6)
    assert read(tmp_path / "3", 32) == Vectors()


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
