"""Classifiers of texts and of tokens: transformers' numbers, labels by name, what `lm score` says."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certificates.cases import array
from certificates.labels import CASES, LIMIT, RECORD, LabelCase, rows
from launch.__main__ import main
from lm.model.families import bert
from lm.model.output import Classifier
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.classify import classify, classify_tokens
from lm.pretrained.fields import Fields
from lm.pretrained.files import TensorToWrite, write
from lm.pretrained.known import HEADS
from lm.pretrained.labels import Labels, read
from lm.text.files import from_file
from tests.model.reference import SIMPLE, lively

RECORDED: dict[str, Any] = json.loads(RECORD.read_text())
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "##s", "rain", ".", ","]


def checkpoint(case: LabelCase, folder: Path, **fields: Any) -> Path:
    """The model directory of a case, with other `fields` in its config."""
    known = RECORDED[case.name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**known["config"], **fields}))
    shapes = {n: tuple(shape) for n, shape in known["tensors"].items()}
    write(folder, [TensorToWrite(n, s, partial(array, n, s)) for n, s in shapes.items()], 1 << 40)
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pretrained]:
    """The model of a case, by its name; loaded once."""
    by_name = {case.name: case for case in CASES}
    return cache(lambda name: load(checkpoint(by_name[name], tmp_path_factory.mktemp("case"))))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scores_are_transformers_and_labels_come_back(
    case: LabelCase, loaded: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    model, wanted = loaded(case.name), [np.array(one) for one in RECORDED[case.name]["scores"]]
    size = np.sqrt(np.mean(np.concatenate([one.ravel() for one in wanted]) ** 2))
    for found, one in zip(model.scores_of_ids(rows()), wanted, strict=True):
        assert found.shape == one.shape
        np.testing.assert_allclose(found, one, atol=LIMIT * size)
    model.save(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.labels == model.labels and model.labels.names == case.labels
    assert again.config == model.config and again.architecture == model.architecture
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_every_head_of_an_encoder_is_recorded() -> None:
    missing = {head.name for head in HEADS} - {case.architecture for case in CASES}
    assert not missing


# ---------------------------------------------------------------- what they mean


def test_one_label_is_the_likeliest_and_several_are_those_of_half() -> None:
    scores = np.array([0.0, 2.0, 1.0])
    one, many = Labels(("a", "b", "c")), Labels(("a", "b", "c"), "multi_label_classification")
    powers = np.exp(scores)
    np.testing.assert_allclose(one.probabilities(scores), powers / powers.sum())
    assert one.of(scores) == [("b", pytest.approx(powers[1] / powers.sum()))]
    found = many.of(np.array([-0.1, 0.0, 3.0]))
    assert found == [("c", pytest.approx(1 / (1 + np.exp(-3)))), ("b", 0.5)] and many.of(-scores - 1) == []
    assert one.chosen and many.chosen and Labels(("a",), "multi_label_classification").chosen
    assert not Labels(("a",)).chosen and not Labels(("a", "b"), "regression").chosen


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(id2label={"0": "a", "2": "b"}), "id2label=.* is not supported: expected a name of each label"),
        (dict(problem_type="ranking"), "problem_type='ranking' is not supported: expected single_label_class"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(fields: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(Fields(fields, "file"))


def test_labels_are_read_in_the_order_of_their_ids() -> None:
    names = {str(i): f"name {i}" for i in reversed(range(12))}
    assert read(Fields({"id2label": names}, "file")).names == tuple(f"name {i}" for i in range(12))
    assert read(Fields({"num_labels": 3}, "file")).names == ("LABEL_0", "LABEL_1", "LABEL_2")


# ---------------------------------------------------------------- texts


def classifier(folder: Path, **head: Any) -> Pretrained:
    """A BERT of few words whose head is `head`, as a model directory reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    cfg = bert(vocab=len(PIECES), layers=2, width=16, heads=2, mlp=20, context=24)
    cfg = replace(cfg, output=Classifier(**{"transform": "tanh", "scores": 3, **head}))
    tokenizer, labels = from_file(folder / "vocab.txt"), Labels(("bad", "so so", "good"))
    return Pretrained(cfg, lively(cfg), tokenizer, Transformer(cfg, SIMPLE), labels=labels)


def test_a_text_and_a_pair_are_read_as_the_tokenizer_puts_them(tmp_path: Path) -> None:
    model = classifier(tmp_path)
    scores, labels = classify(model, [{"text": "A fine film."}, {"text": "rains", "text_pair": "a film"}])
    ids = [[2, 5, 6, 7, 10, 3], [2, 9, 8, 3, 5, 7, 3]]
    types = [[0] * 6, [0, 0, 0, 0, 1, 1, 1]]
    for row, kinds, found, said in zip(ids, types, scores, labels, strict=True):
        hidden = model.logits([row], token_type_ids=[kinds])
        alone = model.model.scores(model.params, hidden[:, :1])[0, 0]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
        assert said is not None and said[0].label == model.labels.names[int(alone.argmax())]
    assert np.abs(model.score_ids(ids[1:]) - scores[1]).max() > 1e-3  # types are read


def test_pooling_sees_no_padding(tmp_path: Path) -> None:
    for pooling, pooled in (("mean", lambda x: x.mean(0)), ("last", lambda x: x[-1]), ("first", lambda x: x[0])):
        model = classifier(tmp_path, pooling=pooling)
        row = [2, 5, 6, 7, 3]
        x = pooled(model.logits([row])[0])
        wanted = model.model.scores(model.params, x)
        np.testing.assert_allclose(model.score_ids([row, [2] * 20])[0], wanted, rtol=1e-4, atol=1e-5)


def test_each_token_has_its_label(tmp_path: Path) -> None:
    model = classifier(tmp_path, pooling="token", transform="")
    (found,) = classify_tokens(model, [{"text": "A film, rains"}])
    assert [(one.text, one.start, one.stop) for one in found] == [
        ("A", 0, 1),
        ("film", 2, 6),
        (",", 6, 7),
        ("rain", 8, 12),
        ("s", 12, 13),
    ]
    probs = jax.nn.softmax(model.model.scores(model.params, model.logits([[2, 5, 7, 11, 9, 8, 3]]))[0])
    for one, each in zip(found, np.asarray(probs)[1:-1], strict=True):
        assert (one.label, one.probability) == (model.labels.names[each.argmax()], pytest.approx(each.max(), rel=1e-4))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda model: classify(model, [{"text": "a"}, {"prompt": "a"}]), "text 1: an encoder reads a text"),
        (lambda model: classify(model, [{"text": "a", "text_pair": 3}]), "text 0: text_pair is '3': expected a text"),
        (lambda model: classify(model, [{"text": "a " * 30}]), "text 0 has 32 tokens: expected 1 to 24"),
        (lambda model: classify_tokens(model, [{"text": "a"}]), "this model has no scores of tokens"),
        (lambda model: replace(model, tokenizer=None).score(["a"]), "this model came without a tokenizer"),
    ],
    ids=range(5),
)
def test_what_cannot_be_classified_is_refused(asked: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        asked(classifier(tmp_path))


def test_scores_of_tokens_are_none_of_a_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scores of tokens, and none of a text"):
        classifier(tmp_path, pooling="token").score_ids([[2]])


def test_the_command_says_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier(tmp_path / "words")
    model.save(tmp_path / "texts")
    _, labels = classify(model, [{"text": "a film"}])
    assert labels[0] is not None
    label, probability = labels[0][0]
    assert main(["score", str(tmp_path / "texts"), "a film"]) == 0
    assert capsys.readouterr().out == f"{label} {probability:.4f}  a film\n"
    assert main(["score", str(tmp_path / "texts"), "a film", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["text"] == "a film" and len(said["score"]) == 3
    assert said["labels"] == [{"label": label, "probability": pytest.approx(probability)}]
    classifier(tmp_path / "words", pooling="token", transform="").save(tmp_path / "tokens")
    assert main(["score", str(tmp_path / "tokens"), "a", "rains"]) == 0
    first, empty, *second = capsys.readouterr().out.splitlines()
    assert first.endswith("  a") and not empty and [line.rsplit(None, 1)[1] for line in second] == ["rain", "s"]
    assert main(["score", str(tmp_path / "tokens"), "rains", "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert [(one["text"], one["start"], one["stop"]) for one in tokens] == [("rain", 0, 4), ("s", 4, 5)]


def test_a_classifier_s_products_are_of_float32() -> None:
    """Whatever the layers compute in."""
    output, x = Classifier(transform="tanh"), jnp.ones((2, 8), jnp.bfloat16)
    cfg = bert(vocab=8, layers=1, width=8, heads=2, mlp=8, context=8, output=output)
    scores = jax.eval_shape(lambda: Transformer(cfg, SIMPLE).scores(lively(cfg), x))
    assert scores.dtype == jnp.float32 and scores.shape == (2, 2)
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        Classifier(pooling="max")
