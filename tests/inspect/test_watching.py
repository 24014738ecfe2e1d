"""What a run notes of its model's inside: on a circuit that is known, and in a run, of which no bit moves."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inspect.look import look
from lm.inspect.probes import probe, read_probes
from lm.inspect.watching import Watching, inside, repeated_tokens
from lm.model.compute import Compute
from lm.model.config import LayerKind
from lm.model.delta import GatedDeltaNet
from lm.model.families import bert, llama, mixtral, scorer
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.pretrained import load, read_experiment
from lm.run import course
from lm.run.watching import Watcher
from tests import tiny
from tests.inspect.circuit import CLEAN, circuit

PLACES = ("attn_pattern", "embedding", "resid_post")
WATCH = Watching(every_steps=3, rows=1, repeated=8, probes=("the cat", "1 + 2"), probe_every_steps=6)


def test_numbers_of_a_circuit() -> None:
    model, params = circuit()
    twice = jnp.array([[7, 0, 1, 2, 7, 0, 1, 2]])
    found = jax.jit(lambda p: inside(model, p, Inputs(jnp.asarray(CLEAN)), twice))(params)
    assert {name: a.shape for name, a in found.items()} == {
        **dict.fromkeys(("attention_entropy", "sink_mass", "previous_token", "largest_logit", "induction"), (2, 2)),
        **dict.fromkeys(("residual_norm", "dead_units"), (2,)),
    }
    assert found["previous_token"][0, 0] == pytest.approx(1)
    assert found["induction"][1, 0] == pytest.approx((3 + 1 / 2) / 4)  # the first token is behind itself too
    assert found["attention_entropy"][0, 0] < 1e-6 and found["induction"][0, 0] < 1e-6
    np.testing.assert_allclose(found["sink_mass"][:, 1], np.mean(1 / np.arange(2, 7)), rtol=1e-5)
    assert found["largest_logit"][0, 0] == 100 and found["largest_logit"][0, 1] == 0


def test_padding_and_neighbours_in_a_row_count_for_nothing() -> None:
    """Two texts in a row, and padding, give the mean of each alone, by their queries."""
    model, params = circuit()
    rows = Inputs(
        jnp.array([[7, 0, 1, 7, 3, 0, 0, 0]]),
        positions=jnp.array([[0, 1, 2, 0, 1, 0, 0, 0]]),
        segments=jnp.array([[1, 1, 1, 2, 2, 0, 0, 0]]),
    )
    run = jax.jit(lambda rows: inside(model, params, rows, None))
    both, *alone = map(run, (rows, Inputs(jnp.array([[7, 0, 1]])), Inputs(jnp.array([[7, 3]]))))
    for name in ("sink_mass", "previous_token"):
        wanted = (2 * alone[0][name] + alone[1][name]) / 3
        np.testing.assert_allclose(both[name][:, 1], wanted[:, 1], rtol=1e-5)
    entropies = (3 * alone[0]["attention_entropy"] + 2 * alone[1]["attention_entropy"]) / 5
    np.testing.assert_allclose(both["attention_entropy"][:, 1], entropies[:, 1], rtol=1e-5)


def test_repeated_tokens_are_known_ones_twice() -> None:
    known = np.array([2, 3, 5, 7, 11, 13])
    ids, others = (np.asarray(repeated_tokens(known, 3, 8, seed)) for seed in (0, 1))
    np.testing.assert_array_equal(ids[:, 8:], ids[:, :8])
    assert ids.shape == (3, 16) and set(ids.flat) <= set(known) and len({tuple(row) for row in ids}) == 3
    assert (ids != others).any() and (ids[:, :8] != ids[:, 7::-1]).any()


def test_experts_have_their_load() -> None:
    cfg = mixtral(vocab=16, layers=2, width=8, heads=2, mlp=8, context=8, experts=3, top_k=1)
    model = Transformer(cfg, Compute(dtype="float32", matmul="float32").resolve())
    run = jax.jit(lambda key: inside(model, model.init(key), Inputs(repeated_tokens(jnp.arange(16), 2, 4)), None))
    found = run(jax.random.key(0))
    np.testing.assert_allclose(found["router_load"].sum(1), 1, rtol=1e-6)
    assert found["router_load"].shape == (2, 3) and "dead_units" not in found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that notes its inside, and the same without."""
    folder = tmp_path_factory.mktemp("runs")
    declared = tiny.experiment(tiny.write_texts(folder / "texts")).replace(compute=dict(matmul="float32"), prompts=())
    for name, watch in (("on", WATCH), ("off", None)):
        course.train(replace(declared, watch=watch), folder / name)
    return folder / "on", folder / "off"


def test_a_run_notes_its_inside_and_no_bit_moves(runs: tuple[Path, Path]) -> None:
    on, off = runs
    lines = [json.loads(line) for line in (on / "inside.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12] and not (off / "inside.jsonl").exists()
    assert np.shape(lines[0]["induction"]) == (2, 2) and np.shape(lines[0]["residual_norm"]) == (2,)
    assert lines[0]["attention_entropy"] != lines[-1]["attention_entropy"]
    assert tiny.lines(on) == tiny.lines(off)


def test_the_report_draws_it(runs: tuple[Path, Path]) -> None:
    page = [(run / "report.html").read_text() for run in runs]
    assert "Attention to the first token" in page[0] and "Largest attention logit" in page[0]
    assert "Attention to the first token" not in page[1]


def test_what_was_noted_after_the_checkpoint_is_noted_again(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """As of a run that was killed after step 8's checkpoint."""
    lines = (runs[0] / "inside.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "inside.jsonl").write_text("".join(lines))
    opened = course.Run(read_experiment(runs[0]), runs[0])
    shutil.copytree(runs[0] / "probes", tmp_path / "probes")
    watcher = Watcher(replace(WATCH, probe_every_steps=4), opened.prepared, tmp_path, 8)
    assert (tmp_path / "inside.jsonl").read_text() == "".join(lines[:2])
    assert [file.name for file in (tmp_path / "probes").iterdir()] == ["00000006.npz"]
    assert [n for n in range(1, 13) if watcher.due(n)] == [3, 4, 6, 8, 9, 12]


def test_every_field_changes_what_is_noted(runs: tuple[Path, Path], tmp_path: Path) -> None:
    opened = course.Run(read_experiment(runs[0]), runs[0])
    state = opened.initial_state()

    def noted(name: str, **fields: Any) -> tuple[list[str], list[tuple[str, list[int]]]]:
        (tmp_path / name).mkdir()
        watcher = Watcher(replace(WATCH, **fields), opened.prepared, tmp_path / name, 0)
        for n in filter(watcher.due, (3, 4, 6)):
            watcher.note(n, state.params, state.frozen)
        lines = (tmp_path / name / "inside.jsonl").read_text().splitlines()
        return lines, [(one.text, one.steps.tolist()) for one in read_probes(tmp_path / name)]

    as_it_is = noted("as it is")
    assert len(as_it_is[0]) == 2 and as_it_is[1] == [("the cat", [6]), ("1 + 2", [6])]
    for field, value in (("rows", 2), ("repeated", 6), ("every_steps", 2)):
        lines, probes = noted(field, **{field: value})
        assert lines != as_it_is[0] and len(lines) == 2 and probes == as_it_is[1]
    assert noted("probes", probes=("owl",)) == (as_it_is[0], [("owl", [6])])
    assert noted("often", probe_every_steps=2)[1] == [("the cat", [4, 6]), ("1 + 2", [4, 6])]


def test_probes_are_what_the_model_has_inside(runs: tuple[Path, Path]) -> None:
    """At the end, those of the run's model; and the largest token's probability has moved since step 6."""
    on, off = runs
    first, second = read_probes(on)
    model = load(on)
    ids = [256, *b"the cat"]
    seen = jax.jit(partial(look, model.model, taps=PLACES))(model.params, jnp.array([ids]))
    assert first.text == "the cat" and first.steps.tolist() == [6, 12] and first.tokens.tolist() == ids
    assert first.pieces == ["<bos>", *"the cat"] and first.layers.tolist() == [0, 1] and second.text == "1 + 2"
    np.testing.assert_allclose(first.attn_pattern[-1], seen.taps["attn_pattern"][:, 0], atol=1e-3)
    streams = np.concatenate([seen.taps["embedding"], seen.taps["resid_post"]])[:, 0]
    np.testing.assert_allclose(first.resid_norm[-1], np.linalg.norm(streams, axis=-1), rtol=1e-4)
    chances = np.asarray(jax.nn.softmax(seen.logits[0]))
    np.testing.assert_allclose(first.next_probs[-1], chances[range(7), ids[1:]], rtol=1e-3)
    assert first.best_tokens[-1, :, 0].tolist() == chances.argmax(-1).tolist()
    np.testing.assert_allclose(first.best_probs[-1, :, 0], chances.max(-1), rtol=1e-3)
    assert not np.array_equal(first.next_probs[0], first.next_probs[1])
    with pytest.raises(ValueError, match="has no probes: Experiment.watch=Watching"):
        read_probes(off)


def test_probes_of_models_without_attention_or_next_tokens() -> None:
    sizes: dict[str, Any] = dict(vocab=16, layers=2, width=8, heads=2, mlp=8, context=8)
    causal, state = llama(**sizes), LayerKind(mixer=GatedDeltaNet(2, 2, key_dim=4, value_dim=4, chunk=4))
    for cfg, heads, best, following in (
        (bert(**sizes), (2, 2), 16, 0),
        (scorer(causal), (2, 2), 0, 0),
        (replace(causal, pattern=(state,)), (0, 0), 16, 4),
        (replace(causal, pattern=(state, LayerKind())), (1, 2), 16, 4),
    ):
        model = Transformer(cfg, Compute(dtype="float32", matmul="float32").resolve())
        shapes = jax.eval_shape(lambda p, m=model: probe(m, p, jnp.arange(5)), model.shapes())
        assert {name: a.shape for name, a in shapes.items()} == {
            "attn_pattern": (*heads, 5, 5),
            "resid_norm": (3, 5),
            "best_tokens": (5, best),
            "best_probs": (5, best),
            "next_probs": (following,),
        }


@pytest.mark.parametrize("bad", [b"", b"PK no archive", None])
def test_a_damaged_file_of_probes_is_a_line(bad: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "probes").mkdir()
    file = tmp_path / "probes" / "00000006.npz"
    if bad is None:
        np.savez(file, **{"0.text": np.array("a")})  # type: ignore[arg-type]
    else:
        file.write_bytes(bad)
    with pytest.raises(ValueError, match="00000006.npz is damaged: .*; remove it"):
        read_probes(tmp_path)


def test_probes_that_cannot_be_read_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    opened = course.Run(read_experiment(runs[0]), runs[0])
    with pytest.raises(ValueError, match="watch.probes: 'a+' has 41 tokens: expected 1 to 32"):
        Watcher(Watching(probes=("a" * 40,)), opened.prepared, tmp_path, 0)
    with pytest.raises(ValueError, match=r"watch.probes=\('a', 'a'\): expected texts, each once"):
        Watching(probes=("a", "a"))
