"""Models of sequences: transformers' numbers, texts and conversations, adapters."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certificates.cases import array
from certificates.scores import LENGTHS, RECORD, rows
from launch.__main__ import main
from lm.model.families import llama, scorer
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.classifiers import SCORE
from lm.pretrained.files import Safetensors, TensorToWrite, write
from lm.pretrained.known import CLASSIFIERS, architecture_for
from lm.pretrained.peft import with_adapter
from lm.pretrained.peft_config import WEIGHTS
from lm.pretrained.peft_save import adapter_of, write_adapter
from lm.pretrained.rows import flatten
from lm.text.tokenizer import Bytes
from lm.tune.lora import LoRA
from tests.model.reference import LLAMA, SIMPLE, lively
from tests.tune.test_lora import disturbed, wrapped

RECORDED: dict[str, Any] = json.loads(RECORD.read_text())
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def checkpoint(name: str, folder: Path, without: str = "", **fields: Any) -> Path:
    """The model directory of a class, with other `fields` in its config (None: without it)."""
    known = RECORDED[name]
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in {**known["config"], **fields}.items() if fields.get(k, 0) is not None}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {n: tuple(shape) for n, shape in known["tensors"].items() if n != without}
    write(folder, [TensorToWrite(n, s, partial(array, n, s)) for n, s in shapes.items()], 1 << 40)
    return folder


def reward_model() -> Pretrained:
    cfg, tokenizer = scorer(llama(vocab=258, layers=2, width=16, heads=2, mlp=20, context=64)), Bytes().make([])
    tokenizer.give_template(CHAT)
    return Pretrained(cfg, lively(cfg), tokenizer, Transformer(cfg, SIMPLE))


MODEL = reward_model()
QUICK = ("LlamaForSequenceClassification", "Qwen2ForSequenceClassification", "GPT2ForSequenceClassification")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in RECORDED])
def test_scores_are_transformers(name: str, tmp_path: Path) -> None:
    """Also under pad = eos, where transformers reads the token before the eos: it scores the text without it."""
    model, known = load(checkpoint(name, tmp_path / "model")), RECORDED[name]
    given = np.array(known["scores"])
    found = model.score_ids(rows())
    assert found.shape == ((4,) if given.shape[1] == 1 else given.shape)
    np.testing.assert_allclose(found.reshape(given.shape), given, atol=1e-5 * given.std())
    long = [i for i, n in enumerate(LENGTHS) if n > 1]
    shorter = model.score_ids([rows()[i][:-1] for i in long])
    np.testing.assert_allclose(shorter.reshape(3, -1), np.array(known["pad_is_eos"])[long], atol=1e-5 * given.std())
    model.save(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.architecture == model.architecture and again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_every_class_is_recorded_and_reads_the_fields_of_its_model_of_texts() -> None:
    assert {a.name for a in CLASSIFIERS} == set(RECORDED)
    for one in CLASSIFIERS:
        base = architecture_for(one.read(one.fields(RECORDED[one.name]["config"], "file")))
        assert base.name == one.name or one.name == "MistralForSequenceClassification"


@pytest.mark.parametrize(
    ("fields", "scores", "said"),
    [
        (dict(id2label=None), 2, ""),
        (dict(id2label=None, num_labels=1), 1, ""),
        (dict(num_labels=1), 1, ""),
        (dict(num_labels=4), 0, "num_labels=4 is not supported: expected 1, the labels of id2label"),
        (dict(id2label=["a"]), 0, "id2label=.* is not supported: expected a name of each label"),
    ],
)
def test_labels_are_counted_as_transformers_does(fields: Any, scores: int, said: str) -> None:
    (one,) = (a for a in CLASSIFIERS if a.name == QUICK[0])
    config = {k: v for k, v in {**RECORDED[QUICK[0]]["config"], **fields}.items() if fields.get(k, 0) is not None}
    if said:
        with pytest.raises(ValueError, match=said):
            one.read(one.fields(config, "file"))
    else:
        assert one.read(one.fields(config, "file")).output.scores == scores


def test_a_head_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensor score.weight is missing: it is head/score"):
        load(checkpoint(QUICK[0], tmp_path, without=SCORE.theirs))


def test_a_text_is_scored_at_its_end_whatever_is_beside_it() -> None:
    texts = ["ab", "a longer one, of another length", "c" * 40]
    found = MODEL.score(texts)
    assert found.shape == (3,) and found.dtype == np.float32 and found.std() > 1e-3
    tokenizer = MODEL.tokenizer
    assert tokenizer is not None
    every = jax.jit(lambda ids: MODEL.model.scores(MODEL.params, MODEL.model.hidden(MODEL.params, ids).x))
    for text, score in zip(texts, found, strict=True):
        ids = [*([] if tokenizer.bos is None else [tokenizer.bos]), *tokenizer.encode(text), tokenizer.eos]
        at_end = every(jnp.asarray([ids + [7] * (64 - len(ids))]))[0, len(ids) - 1, 0]  # what follows is not seen
        assert float(score) == pytest.approx(float(at_end), rel=1e-5)
        np.testing.assert_allclose(MODEL.score([text]), score, rtol=1e-5)
    many = MODEL.score(texts * 30)  # more than a block, in another order
    np.testing.assert_allclose(many, np.tile(found, 30), rtol=1e-5)
    assert MODEL.score([]).shape == (0,)


def test_a_conversation_is_scored_by_its_template() -> None:
    messages = [dict(role="user", content="Hi"), dict(role="assistant", content="Ho")]
    (score,) = MODEL.score([messages])
    tokenizer = MODEL.tokenizer
    assert tokenizer is not None and tokenizer.eos is not None
    end = [tokenizer.eos]
    ids = [*tokenizer.encode("user: Hi"), *end, *tokenizer.encode("assistant: Ho"), *end]
    ids = ids if tokenizer.bos is None else [tokenizer.bos, *ids]
    assert score == MODEL.score_ids([ids])[0] != MODEL.score_ids([ids[:-1]])[0]
    halves = MODEL.score([dict(prompt=messages[:1], completion=messages[1:]), dict(messages=messages)])
    np.testing.assert_allclose(halves, score, rtol=1e-6)
    np.testing.assert_array_equal(MODEL.score([dict(prompt="a", completion="b")]), MODEL.score(["ab"]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: MODEL.score("a text"), "score takes a list of texts"),
        (lambda: MODEL.score(["a", "b" * 80]), "text 1 has 8[12] tokens: expected 1 to 64, the model's context"),
        (lambda: MODEL.score_ids([[3], []]), "text 1 has 0 tokens"),
        (lambda: MODEL.score_ids([[3, 999]]), "token ids from 0 to 999"),
        (lambda: MODEL.score(["a", [dict(role="user", content="Hi")]]), "text 1: messages has no message of the assi"),
        (lambda: MODEL.score(["a", dict(question="Hi")]), "text 1: expected messages, or prompt and completion, or"),
        (lambda: plain().score_ids([[1]]), r"this model has no scores: expected a reward model, trained by Reward\(\)"),
        (lambda: MODEL.generate("x"), "no output over the vocabulary, so it generates no text"),
    ],
    ids=range(8),
)
def test_what_cannot_be_scored_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asked()


def plain() -> Pretrained:
    return Pretrained(LLAMA, lively(LLAMA), None, Transformer(LLAMA, SIMPLE))


def test_an_adapter_has_the_head_and_makes_of_a_model_of_texts_one_of_scores(tmp_path: Path) -> None:
    cfg, lora = scorer(LLAMA), LoRA(rank=2, where="query|mlp")
    learner = wrapped(cfg, lora)
    assert "head/score" in learner.trained and "head/score" not in lora.frozen(cfg)
    params, frozen = jax.jit(learner.init)(jax.random.key(0), lively(LLAMA))
    params = disturbed(params)
    moving = {path: np.asarray(x) for path, x in flatten(params).items()}
    config, arrays = adapter_of(cfg, lora, moving, "there")
    write_adapter(tmp_path, config, arrays)
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    assert Safetensors.of_file(tmp_path / WEIGHTS).shape("base_model.model.score.weight") == (1, LLAMA.width)
    found, merged = with_adapter(plain(), tmp_path), learner.model_params(params, frozen)
    assert found.config == cfg and jax.tree.structure(found.params) == jax.tree.structure(found.model.shapes())
    ids = [[3, 4, 5], [7]]
    expected = replace(found, params=merged).score_ids(ids)
    np.testing.assert_allclose(found.score_ids(ids), expected, rtol=1e-5)
    found.save(tmp_path / "saved")
    np.testing.assert_allclose(load(tmp_path / "saved").score_ids(ids), expected, rtol=1e-5)


def test_the_command_prints_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "model")
    MODEL.save(model)
    assert main(["score", model, "ab", "a " + "long " * 10]) == 0
    scores = [f"{x:10.4f}" for x in MODEL.score(["ab", "a " + "long " * 10])]
    assert capsys.readouterr().out.splitlines() == [f"{scores[0]}  ab", f"{scores[1]}  a " + "long " * 9 + "long"]
    file = tmp_path / "some.jsonl"
    file.write_text('{"text": "ab"}\n\n{"prompt": "a", "completion": "b"}\n')
    assert main(["score", model, "--records", str(file), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.pop("score") for line in lines] == [pytest.approx(MODEL.score(["ab"])[0])] * 2
    assert lines == [{"text": "ab"}, {"prompt": "a", "completion": "b"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "nothing to score"), ("{", "line 1 is not JSON"), ("3", "line 1 is no object"), ('{"a": 1}', "text 0: expe")],
)
def test_the_command_says_what_is_wrong(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MODEL.save(tmp_path / "model")
    (tmp_path / "x.jsonl").write_text(content)
    assert main(["score", str(tmp_path / "model"), "--records", str(tmp_path / "x.jsonl")]) == 1
    *loaded, shown = capsys.readouterr().err.splitlines()
    assert shown.startswith("lm: ") and said in shown
    assert all(line.startswith("lm: ") and "parameters" in line for line in loaded) and len(loaded) <= 1
