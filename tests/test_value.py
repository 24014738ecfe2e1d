"""Values: what is written, read and changed is what was meant, and a mistake names the cure."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.mixture import Breakpoint, Data, Mixture
from lm.data.pack import Chunk, Pack
from lm.data.records import Jsonl, Tfds
from lm.data.source import TextFile, TextFolder
from lm.data.stdlib import Stdlib
from lm.decode.sampling import Sampling
from lm.experiment import Experiment
from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.families import gpt, llama
from lm.model.parts import ACTIVATIONS, FeedForward, LayerNorm, Norm, RMSNorm
from lm.model.positions import Learned, Positions, Rotary, Sinusoidal
from lm.model.wiring import PreNorm, Wiring
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec, TokenizerFile
from lm.train.optim import Adafactor, AdamW, Lion, Muon
from lm.train.schedule import WSD, Cosine
from lm.value import build, differences, fingerprint, fit, nested, parse, paths, plain, replace, suggest

EXPERIMENT = Experiment(
    name="first",
    model=llama(vocab=300, layers=2, width=16, heads=4, kv_heads=2, mlp=32, context=8),
    data=Data(
        mixture=Mixture(
            sources={"code": Stdlib("code"), "prose": TextFile("a.txt")},
            weights={"code": 3.0, "prose": 1.0},
            breakpoints=(Breakpoint(5, {"code": 1.0, "prose": 1.0}),),
        ),
        tokenizer=SentencePieceSpec(vocab_size=300),
    ),
    steps=10,
    batch_tokens=32,
    prompts=("def ",),
)

numbers = st.integers(1, 10**6)
fractions = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
norms = st.builds(LayerNorm, eps=fractions, bias=st.booleans()) | st.builds(RMSNorm, eps=fractions) | st.just(Norm())
positions = (
    st.builds(Learned, init_scale=fractions)
    | st.builds(Sinusoidal, max_wavelength=st.floats(1, 1e7))
    | st.builds(Rotary, theta=st.floats(1, 1e7))
    | st.just(Positions())
)
attentions = st.builds(
    lambda groups, kv, half, bias: Attention(heads=groups * kv, head_dim=2 * half, kv_heads=kv, bias=bias),
    *(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64), st.booleans()),
)
models = st.builds(
    ModelConfig,
    vocab=numbers,
    layers=numbers,
    width=numbers,
    context=st.integers(8, 10**6),
    attention=attentions,
    ffn=st.builds(
        FeedForward,
        mlp=numbers,
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        gated=st.booleans(),
        bias=st.booleans(),
    ),
    norm=norms,
    positions=positions,
    wiring=st.sampled_from([PreNorm(), Wiring()]),
    tied=st.booleans(),
    dropout=fractions,
    init_scale=fractions,
)


# ---------------------------------------------------------------- there and back


@settings(deadline=None)
@given(model=models)
def test_a_model_survives_json(model: ModelConfig) -> None:
    there = json.loads(json.dumps(plain(model)))
    back = build(ModelConfig, there)
    assert back == model and hash(back) == hash(model)
    assert fingerprint(back) == fingerprint(model)
    assert differences(plain(back), there) == []


@settings(deadline=None)
@given(model=models)
def test_a_model_reads_back_as_python_prints_it(model: ModelConfig) -> None:
    model = replace(model, {"context": 8})  # as long as the rows
    assert parse(EXPERIMENT, f"model={model!r}").model == model


@settings(deadline=None)
@given(a=models, b=models)
def test_differences_are_what_replace_needs(a: ModelConfig, b: ModelConfig) -> None:
    """Setting in `a` the fields whose paths differ gives `b`; equal values, and only those, share a fingerprint."""
    top = {path.split(".")[0] for path, _, _ in differences(plain(a), plain(b))}
    assert replace(a, {name: getattr(b, name) for name in top}) == b
    assert (fingerprint(a) == fingerprint(b)) == (not top)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": Muon(learning_rate=0.02, schedule=WSD(warmup_steps=2, decay_fraction=0.5))},
        {"optimizer": Lion(clip=0.5), "mesh": {"data": 2, "tensor": 4}},
        {"optimizer": Adafactor(schedule=Cosine(warmup_steps=3)), "compute": Compute(remat="dots", devices=2)},
        {"data": Data(Mixture({"a": Jsonl("x.jsonl", heldout="y.jsonl")}, {"a": 1.0}), Bytes(), Pack())},
        {"data": Data(Mixture({"a": Tfds("lm1b")}, {"a": 1.0}), Characters(), Chunk(across_documents=True))},
        {"data": Data(Mixture({"a": TextFolder("d")}, {"a": 1.0}), TokenizerFile("t.model"), Pack())},
        {"model": gpt(vocab=300, layers=1, width=8, heads=2, context=8), "sampling": Sampling(0.5, 3, 0.9)},
    ],
)
def test_an_experiment_survives_json(changes: dict[str, Any]) -> None:
    experiment = replace(EXPERIMENT, changes)
    back = build(Experiment, json.loads(json.dumps(plain(experiment))))
    assert back == experiment
    assert back.fingerprint == experiment.fingerprint
    assert (back.fingerprint == EXPERIMENT.fingerprint) == (not changes)


@dataclasses.dataclass(frozen=True)
class OwnNorm(Norm):
    """A part from outside the library."""

    power: float = 2.0


def test_a_class_from_elsewhere_is_named_with_its_module() -> None:
    data = plain(OwnNorm(3.0))
    assert data == {"type": f"{__name__}:OwnNorm", "power": 3.0}
    assert build(Norm, data) == OwnNorm(3.0)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", lambda x: x])
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"not of {type(value).__name__}"):
        plain({"field": value})


def test_numbers_read_from_json_take_the_type_of_their_field() -> None:
    data = plain(EXPERIMENT) | {"ema": 0, "prompts": ["a", "b"]}
    back = build(Experiment, data)
    assert isinstance(back.ema, float) and back.prompts == ("a", "b")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["steps"], "ten", "'ten' is not a int"),
        (["steps"], True, "True is not a int"),
        (["steps"], 1.5, "1.5 is not a int"),
        (["prompts"], "a", "'a' is not a list"),
        (["mesh"], 4, "4 is not a mapping"),
        (["model"], 4, "4 is not a"),
        (["model", "type"], "Transformr", "unknown ModelConfig 'Transformr': known: ModelConfig"),
        (["model", "norm"], {"type": "RMSNrm"}, "unknown Norm 'RMSNrm': did you mean RMSNorm"),
        (["model", "layrs"], 3, "ModelConfig has no field 'layrs': did you mean layers"),
    ],
)
def test_data_that_does_not_fit_is_refused(path: list[str], value: Any, message: str) -> None:
    data = plain(EXPERIMENT)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        build(Experiment, data)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that could be imported, with a norm, and something that is none."""
    (tmp_path / "elsewhere.py").write_text(
        "from dataclasses import dataclass\nfrom lm.model.parts import Norm\n"
        "@dataclass(frozen=True)\nclass Mine(Norm):\n    eps: float = 1.0\ndef call(eps=0): raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LM_TRUST", raising=False)
    yield "elsewhere"
    sys.modules.pop("elsewhere", None)


def test_data_import_no_module(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"type": "elsewhere:Mine", "eps": 2.0}
    with pytest.raises(ValueError, match="the module elsewhere is named by a file .* not imported here: .*--trust"):
        build(Norm, data)
    with pytest.raises(ValueError, match="--trust"):
        fit(Norm | None, data)
    assert elsewhere not in sys.modules
    monkeypatch.setenv("LM_TRUST", "1")
    mine = build(Norm, data)
    assert plain(mine) == data
    monkeypatch.delenv("LM_TRUST")
    assert build(Norm, data) == mine  # imported by now, by a page say


@pytest.mark.parametrize(
    "name", ["elsewhere:call", "elsewhere:dataclass", "elsewhere:none", "elsewhere:", "builtins:exec"]
)
def test_what_is_no_class_of_the_field_is_not_called(
    name: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_TRUST", "1")
    with pytest.raises(ValueError, match=f"unknown Norm '{name}'"):
        build(Norm, {"type": name})


@pytest.mark.parametrize("name", [3, None, ["RMSNorm"], {}])
def test_a_class_s_name_is_text(name: Any) -> None:
    with pytest.raises(ValueError, match="type is .*: expected the name of a class"):
        build(Norm, {"type": name})


def test_a_field_that_is_missing_is_named() -> None:
    data = plain(EXPERIMENT)
    del data["steps"]
    with pytest.raises(ValueError, match="cannot build Experiment: .*'steps'"):
        build(Experiment, data)


# ---------------------------------------------------------------- changes


def test_replace_changes_what_is_named_and_nothing_else() -> None:
    changed = replace(
        EXPERIMENT, {"steps": 3, "model": {"layers": 5, "attention": {"bias": True}}, "mesh": {"data": 2}}
    )
    found = {path: new for path, _, new in differences(plain(EXPERIMENT), plain(changed))}
    assert found == {"steps": 3, "model.layers": 5, "model.attention.bias": True, "mesh.data": 2}
    assert EXPERIMENT.steps == 10


def test_replace_adds_to_a_mapping_and_replaces_a_value() -> None:
    data = replace(EXPERIMENT.data, {"mixture": {"weights": {"code": 0.0}}, "packing": Pack()})
    assert data.mixture.weights == {"code": 0.0, "prose": 1.0} and data.packing == Pack()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepps": 3}, "Experiment has no field 'stepps': did you mean steps"),
        ({"model": {"attention": {"head": 3}}}, "Attention has no field 'head': did you mean .*known: heads, head_dim"),
        ({"model": {"layers": 0}}, "model.layers=0: expected at least 1"),
        ({"objective": {"rate": 0.1}}, "Experiment has no field 'objective': it is method.objective now"),
    ],
)
def test_a_wrong_change_lists_the_right_ones(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EXPERIMENT, changes)


@pytest.mark.parametrize(
    ("setting", "read", "expected"),
    [
        ("steps=100", lambda e: e.steps, 100),
        ("steps=1e3", lambda e: e.steps, 1000),
        ("steps=10_000", lambda e: e.steps, 10_000),
        ("eval_tokens=9223372036854775807", lambda e: e.eval_tokens, 9223372036854775807),
        ("method.z_loss=1e-4", lambda e: e.method.z_loss, 1e-4),
        ("method.z_loss=1", lambda e: repr(e.method.z_loss), "1.0"),
        ("name=1e3", lambda e: e.name, "1e3"),
        ("name=a=b", lambda e: e.name, "a=b"),
        ("prompts=('a', 'b')", lambda e: e.prompts, ("a", "b")),
        ("prompts=()", lambda e: e.prompts, ()),
        ("prompts=a,b", lambda e: e.prompts, ("a", "b")),
        ("mesh={'data': 2}", lambda e: e.mesh, {"data": 2}),
        ("mesh.fsdp=4", lambda e: e.mesh, {"fsdp": 4}),
        ("model.layers=4", lambda e: e.model.layers, 4),
        ("model.tied=true", lambda e: e.model.tied, True),
        ("model.tied=0", lambda e: e.model.tied, False),
        ("model.positions=Rotary(theta=5e5)", lambda e: e.model.positions, Rotary(theta=5e5)),
        ("model.positions=Learned", lambda e: e.model.positions, Learned()),
        ("model.positions.theta=7", lambda e: e.model.positions, Rotary(theta=7.0)),
        ("model.norm=LayerNorm(bias=False)", lambda e: e.model.norm, LayerNorm(bias=False)),
        ("compute.dtype=bfloat16", lambda e: e.compute.dtype, "bfloat16"),
        ("optimizer=AdamW(learning_rate=3e-4, b2=0.99)", lambda e: e.optimizer, AdamW(learning_rate=3e-4, b2=0.99)),
        (
            "optimizer=Muon(schedule=WSD(warmup_steps=2, shape='linear'))",
            lambda e: e.optimizer,
            Muon(schedule=WSD(warmup_steps=2, shape="linear")),
        ),
        ("data.tokenizer=Bytes()", lambda e: e.data.tokenizer, Bytes()),
        ("data.mixture.weights.code=0.5", lambda e: e.data.mixture.weights, {"code": 0.5, "prose": 1.0}),
        ("data.mixture.weights.code=2", lambda e: repr(e.data.mixture.weights["code"]), "2.0"),
        (
            "data.mixture.sources.code=TextFolder(path='x', heldout=0.2)",
            lambda e: e.data.mixture.sources,
            {"code": TextFolder("x", heldout=0.2), "prose": TextFile("a.txt")},
        ),
        ("data.mixture.sources.prose.path=b.txt", lambda e: e.data.mixture.sources["prose"], TextFile("b.txt")),
        ("data.mixture.sources.prose.heldout=b.txt", lambda e: e.data.mixture.sources["prose"].heldout, "b.txt"),
        ("data.mixture.sources.prose.heldout=0.25", lambda e: e.data.mixture.sources["prose"].heldout, 0.25),
        ("data.mixture.sources.code.folder=None", lambda e: e.data.mixture.sources["code"].folder, None),
    ],
)
def test_a_setting_is_read_as_its_field_s_type(setting: str, read: Any, expected: Any) -> None:
    found = read(parse(EXPERIMENT, setting))
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "cannot read 'steps': expected field=value"),
        ("=3", "cannot read '=3': expected field=value"),
        ("stepz=3", r"stepz=3: Experiment has no field 'stepz': did you mean steps\? known: name, model, data"),
        ("model.layer=3", "ModelConfig has no field 'layer': did you mean layers"),
        ("steps.x=3", "10 has no fields, so 'x' cannot be set in it"),
        ("steps=many", "steps=many: cannot read 'many' as int"),
        ("steps=1.5", "cannot read '1.5' as int"),
        ("steps=inf", "cannot read 'inf' as int"),
        ("steps=nan", "cannot read 'nan' as int"),
        ("steps=-3", "steps=-3: expected at least 1"),
        ("model.tied=maybe", "cannot read 'maybe' as bool"),
        ("prompts=hello, you", "cannot read 'hello, you' as tuple"),
        ("prompts=('a')", "cannot read .* as tuple"),
        ("mesh={'data': 'x'}", "cannot read .* as dict"),
        ("data.mixture.sources.prosa.path=x", "no entry 'prosa': did you mean prose"),
        ("data.mixture.weights.prosa=1", "weights name 'prosa', which is no source: did you mean prose"),
        (
            "model.positions=Rotar(theta=1)",
            r"unknown Positions 'Rotar': did you mean Rotary or PartialRotary\? known: Positions, Learned",
        ),
        ("model.positions=Rotary(base=1)", "Rotary has no field 'base': known: theta"),
        ("model.positions=Rotary(1.0)", "with named fields"),
        ("model.positions=Rotary(", "write it as Python does"),
        ("model.positions=AdamW()", "unknown Positions 'AdamW'"),
        ("data.mixture.sources.code=TextFile()", "cannot build 'TextFile\\(\\)': .*path"),
        ("model.attention.kv_heads=3", "heads=4 is not a multiple of kv_heads=3"),
    ],
)
def test_a_setting_that_cannot_be_read_says_what_could(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse(EXPERIMENT, setting)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- differences


def test_differences_name_paths_and_both_sides() -> None:
    other = replace(EXPERIMENT, {"steps": 20, "optimizer": Lion(), "data": {"mixture": {"weights": {"code": 9.0}}}})
    found = {path: (old, new) for path, old, new in differences(plain(EXPERIMENT), plain(other))}
    assert found["steps"] == (10, 20)
    assert found["data.mixture.weights.code"] == (3.0, 9.0)
    assert found["optimizer.type"] == ("AdamW", "Lion")
    assert found["optimizer.eps"] == (1e-8, None)
    assert not any(path.startswith("model") for path in found)


def test_suggest_puts_the_near_ones_first() -> None:
    assert suggest("layrs", ["width", "layers"]) == "did you mean layers? known: width, layers"
    assert suggest("zzz", ["width"]) == "known: width"
    assert suggest("zzz", []) == "known: none"


def test_paths_and_nested_are_inverse() -> None:
    changes = {"model": {"layers": 3, "positions": Positions()}, "steps": 5, "mesh": {"data": 2}}
    assert paths(changes) == ["model.layers", "model.positions", "steps", "mesh.data"]
    assert nested({"model.layers": 3, "model.positions": Positions(), "steps": 5, "mesh.data": 2}) == changes
