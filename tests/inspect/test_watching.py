"""What a run notes of its model's inside: on a circuit that is known, and in a run, of which no bit moves."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inspect.watching import Watching, inside, repeated_tokens
from lm.model.compute import Compute
from lm.model.families import mixtral
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.page.run_report import write_report
from lm.pretrained import read_experiment
from lm.run import course
from lm.run.watching import Watcher
from tests import tiny
from tests.inspect.circuit import CLEAN, circuit


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


def test_experts_have_their_load() -> None:
    cfg = mixtral(vocab=16, layers=2, width=8, heads=2, mlp=8, context=8, experts=3, top_k=1)
    model = Transformer(cfg, Compute(dtype="float32", matmul="float32").resolve())
    run = jax.jit(lambda key: inside(model, model.init(key), Inputs(repeated_tokens(16, 2, 4)), None))
    found = run(jax.random.key(0))
    np.testing.assert_allclose(found["router_load"].sum(1), 1, rtol=1e-6)
    assert found["router_load"].shape == (2, 3) and "dead_units" not in found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that notes its inside, and the same without."""
    folder = tmp_path_factory.mktemp("runs")
    declared = tiny.experiment(tiny.write_texts(folder / "texts"))
    for name, watch in (("on", Watching(every_steps=3, rows=1, repeated=8)), ("off", None)):
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
    page = [write_report(run).read_text() for run in runs]
    assert "Attention to the first token" in page[0] and "Largest attention logit" in page[0]
    assert "Attention to the first token" not in page[1]


def test_what_was_noted_after_the_checkpoint_is_noted_again(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """As of a run that was killed after step 8's checkpoint."""
    lines = (runs[0] / "inside.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "inside.jsonl").write_text("".join(lines))
    opened = course.Run(read_experiment(runs[0]), runs[0])
    watcher = Watcher(Watching(every_steps=3, rows=1, repeated=8), opened.prepared, tmp_path, 8)
    assert (tmp_path / "inside.jsonl").read_text() == "".join(lines[:2])
    assert [n for n in range(1, 13) if watcher.due(n)] == [3, 6, 9, 12]


def test_every_field_changes_what_is_noted(runs: tuple[Path, Path], tmp_path: Path) -> None:
    opened = course.Run(read_experiment(runs[0]), runs[0])
    state = opened.initial_state()

    def noted(name: str, **fields: int) -> list[str]:
        (tmp_path / name).mkdir()
        watcher = Watcher(
            Watching(**{"every_steps": 3, "rows": 1, "repeated": 8, **fields}), opened.prepared, tmp_path / name, 0
        )
        for n in filter(watcher.due, (3, 4)):
            watcher.note(n, state.params, state.frozen)
        return (tmp_path / name / "inside.jsonl").read_text().splitlines()

    found = [noted("as it is"), noted("rows", rows=2), noted("repeated", repeated=6), noted("every", every_steps=2)]
    assert len({tuple(lines) for lines in found}) == 4 and all(len(lines) == 1 for lines in found)
