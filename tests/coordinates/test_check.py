"""The coordinate check: what it looks at is what the model computes; it tells muP from the standard parametrisation."""

import csv
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.coordinates.activations import activations
from lm.coordinates.check import Coordinates, run
from lm.coordinates.drift import Analysis, Row, analyse, exponent
from lm.coordinates.report import headline, html
from lm.experiment import Experiment
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.families import llama, t5
from lm.model.inputs import Inputs
from lm.model.parametrisation import MuP, Parametrisation
from lm.model.parts import FeedForward
from lm.model.transformer import Transformer
from lm.model.widths import widened
from lm.train.optim import AdamW
from tests.model.reference import GEMMA2, GPT, LLAMA, MODELS, SIMPLE, close, lively, tokens
from tests.tiny import experiment, write_texts

T5 = t5(vocab=29, layers=2, width=12, heads=3, head_dim=4, mlp=20, context=16)
SMALL = llama(vocab=258, layers=1, width=64, heads=4, mlp=96, context=16)


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize("cfg", [GPT, LLAMA, GEMMA2, MODELS["palm"], MODELS["mixtral"]], ids=str)
def test_the_last_of_them_are_the_model_s(cfg: ModelConfig) -> None:
    cfg = replace(cfg, parametrisation=MuP(4, base_head_dim=2), tied=True)
    model, params, ids = Transformer(cfg, SIMPLE), lively(cfg), tokens(cfg, 2, 7)
    both = jax.jit(lambda p: (activations(model, p, {"tokens": ids}), model.hidden(p, ids).x, model(p, ids)))
    seen, last, logits = jax.device_get(both(params))
    close(seen[f"layer {cfg.layers}"], last)
    close(seen["logits"], logits)
    assert {"embedding", "layer 1 attention", "layer 1 attention logits", "layer 1 ffn"} < set(seen)
    if cfg.wiring == LLAMA.wiring:
        close(seen["layer 1"], seen["embedding"] + seen["layer 1 attention"] + seen["layer 1 ffn"])


def test_attention_s_logits_are_q_k_times_the_scale() -> None:
    cfg = replace(LLAMA, parametrisation=MuP(4, base_head_dim=1))  # H 4: q k / 4
    params, ids = lively(LLAMA), tokens(cfg, 2, 7)
    seen = jax.device_get(jax.jit(lambda p: activations(Transformer(cfg, SIMPLE), p, {"tokens": ids}))(params))
    assert seen["layer 1 attention logits"].shape == (2, 2, 2, 7, 7)
    layer = {name: np.asarray(x, np.float64)[0] for name, x in params["layers"]["0"].items()}
    x = np.asarray(seen["embedding"], np.float64)
    h = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * layer["attention_norm_scale"]
    q, k = (np.einsum("btd,dnh->btnh", h, layer[name]) for name in ("query", "key"))
    close(seen["layer 1 attention logits"][1, 1, 0], q[1, :, 2] @ k[1, :, 1].T / 4, 1e-4)


def test_an_encoder_is_looked_at_too() -> None:
    model, params, ids = Transformer(T5, SIMPLE), lively(T5), tokens(T5, 2, 5)
    batch = {"tokens": ids, "encoder_tokens": ids, "encoder_segment_ids": np.ones_like(ids)}
    inputs = Inputs(ids, encoder=Inputs(ids))
    seen, encoded, logits = jax.device_get(
        jax.jit(lambda p: (activations(model, p, batch), model.encode(p, ids), model(p, inputs)))(params)
    )
    close(seen["encoder"], encoded)
    close(seen["logits"], logits)
    assert "layer 2 cross" in seen


# ---------------------------------------------------------------- widths


def test_a_widened_model_keeps_its_proportions() -> None:
    wide = widened(SMALL, 256)
    assert (wide.width, wide.ffn.mlp, wide.attention.heads, wide.attention.head_dim) == (256, 384, 16, 16)
    large = widened(SMALL, 256, "head_dim")
    assert (large.attention.heads, large.attention.head_dim) == (4, 64)
    kinds = tuple(replace(kind, ffn=FeedForward(48)) for kind in GEMMA2.pattern)
    assert [kind.ffn for kind in widened(replace(GEMMA2, pattern=kinds), 24).pattern] == [FeedForward(96)] * 2
    assert widened(SMALL, 64) == SMALL
    one = replace(SMALL, attention=replace(SMALL.attention, kv_heads=1))
    assert widened(one, 256).attention.kv_heads == 1  # one for all heads stays one


# ---------------------------------------------------------------- exponents and verdicts


@given(
    power=st.floats(-2, 2),
    factor=st.floats(1e-3, 1e3),
    widths=st.lists(st.integers(3, 12), min_size=2, max_size=6, unique=True).map(lambda ks: [2**k for k in ks]),
)
@settings(deadline=None)  # the first call imports scipy
def test_the_exponent_of_a_power_is_found(power: float, factor: float, widths: list[int]) -> None:
    slope, half_width = exponent([(w, factor * w**power) for w in widths])
    assert slope == pytest.approx(power, abs=1e-6)
    assert math.isnan(half_width) or half_width == pytest.approx(0, abs=1e-4)  # nan: two widths, or no slope at all


def rows(at_first: float, change: float, judged: str = "MuP") -> list[Row]:
    """Of one place, whose size and change go with these powers of the width."""
    return [
        Row(judged, width, seed, step, "layer 1", width**at_first, step * (1 + 0.01 * seed) * width**change)
        for width in (64, 128, 256)
        for seed in (0, 1)
        for step in (0, 1)
    ]


@pytest.mark.parametrize(
    ("at_first", "change", "verdict"),
    [
        (0.0, 0.2, "flat"),
        (0.0, -0.2, "flat"),
        (0.0, 0.5, "grows"),
        (0.0, -0.5, "shrinks"),
        (0.5, 0.0, "grows"),
        (-0.5, -0.5, "flat"),  # a sum of random terms over the width, as muP's logits are
        (-0.5, 0.5, "grows"),
        (-0.5, -1.0, "shrinks"),
    ],
)
def test_the_verdicts(at_first: float, change: float, verdict: str) -> None:
    found = analyse(rows(at_first, change), "MuP", 0.35)
    assert [s.verdict for s in found.slopes] == [verdict]
    assert len(found.drift) == (verdict != "flat")
    assert analyse(rows(at_first, change, "standard"), "MuP", 0.35).drift == []  # measured, not judged


def test_what_does_not_move_and_what_is_not_finite() -> None:
    still = [row._replace(change=0.0) for row in rows(0, 0)]
    assert [s.verdict for s in analyse(still, "MuP", 0.35).slopes] == ["still"]
    lost = [row._replace(change=math.nan if row.width == 256 and row.step else row.change) for row in rows(0, 0)]
    found = analyse(lost, "MuP", 0.35)
    assert [s.verdict for s in found.drift] == ["not finite"] and "is not finite" in headline(found)
    assert "<svg" in html("x", found, []) and "<svg" in html("x", analyse(still, "MuP", 0.35), [])


# ---------------------------------------------------------------- the check itself


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("coordinates") / "texts")


def base(texts: Path, rule: Parametrisation) -> Experiment:
    return experiment(texts).replace(
        model=replace(SMALL, parametrisation=rule),
        compute=Compute(attention="plain", matmul="float32"),
        optimizer=AdamW(learning_rate=4e-3),
        batch_tokens=8 * 16,
        ema=0.0,
    )


@cache
def checked(texts: Path, rule: Parametrisation) -> tuple[Path, Analysis]:
    folder, widest = texts.parent / type(rule).__name__, 256 if rule == MuP(64) else 512
    return folder, run(Coordinates(base(texts, rule), (64, widest), steps=3, seeds=[0], twin=False), folder)


def test_activations_stay_under_mup_and_grow_without(texts: Path) -> None:
    _, good = checked(texts, MuP(64))
    assert good.drift == [] and all(abs(s.change) < 0.2 for s in good.slopes if s.place != "logits")
    _, bad = checked(texts, Parametrisation())
    assert {"layer 1", "layer 1 attention logits", "layer 1 ffn"} <= {s.place for s in bad.drift}
    # as the root of the width and faster, but for the feed-forward's own output, which was 0.50 and 0.44 on two texts
    assert all(s.change > (0.4 if s.place.endswith("ffn") else 0.5) for s in bad.drift)


def test_the_folder_tells_all(texts: Path) -> None:
    folder, found = checked(texts, MuP(64))
    with (folder / "coordinates.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(found.rows) == 2 * 4 * 6  # widths, steps from 0, places
    assert {row["place"] for row in read} == {s.place for s in found.slopes}
    assert [float(row["change"]) for row in read] == [row.change for row in found.rows]
    assert all(float(row["change"]) == 0 for row in read if row["step"] == "0")
    page = (folder / "report.html").read_text()
    assert "Under MuP no activation drifts with the width, from width 64 to 256." in page
    assert page.count("<svg") == 6 and "MuP(base_width=64" in page and "http" not in page


def test_a_drift_fails_the_command_and_says_where(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bad = checked(texts, Parametrisation())
    monkeypatch.setattr("lm.coordinates.check.measure", lambda study: bad)
    study = Coordinates(base(texts, Parametrisation()), (64, 512))
    with pytest.raises(ValueError, match=r"drift with the width in standard: .*layer 1 .*exponent \+\d.*report.html"):
        study.report(texts.parent / "failed")
    assert "drifts" in (texts.parent / "failed/report.html").read_text()
    assert study.trials([]) == [] and not hasattr(study, "measure")  # how `lm study` knows it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(widths=(64,)), r"widths=\(64,\): expected at least two, rising"),
        (dict(widths=(128, 64)), "rising"),
        (dict(widths=(64, 100)), "width=100: attention.heads would be 6.25, from 4 at 64"),
        (dict(grows="depth"), "grows='depth': expected heads or head_dim"),
        (dict(steps=0), "steps=0"),
        (dict(seeds=[]), "at least one seed"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Coordinates(base(Path("texts"), MuP(64)), **options)


def test_a_folder_that_cannot_be_written(texts: Path) -> None:
    from lm.coordinates.report import write_report

    file = texts.parent / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="choose another --workdir"):
        write_report(file / "folder", "x", analyse(rows(0, 0), "MuP", 0.35), [])
