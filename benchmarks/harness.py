"""The same tasks of lm-evaluation-harness asked in two ways: `lm evaluate --tasks`, and the harness's own
`local-completions` against `lm serve`. Their figures have to be the same.

    python -m venv build/harness && build/harness/bin/pip install -e ".[harness,serve]" "lm_eval[api]==0.4.13"
    build/harness/bin/python -m benchmarks.harness MODEL DATA --keep

DATA has lambada_test.jsonl (openai's LAMBADA, {"text": ..} a line) and BLiMP.zip (alexwarstadt/blimp); the network is
not used. The harness's client sends token ids without a bos, so the task files begin a context with the bos's name;
`lm evaluate`, which would put one itself, then must not put another.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval

from benchmarks import report
from benchmarks.machine import describe

STOCK = Path(lm_eval.__file__).parent / "tasks"
OURS, THEIRS = "lm evaluate --tasks", "local-completions against lm serve"
TITLE = "lm-evaluation-harness: in this process, and against the server"
PORT = 8123
NAME = "served"


def write_tasks(data: Path, folder: Path, bos: str) -> None:
    """Task files by the names of the harness's own, which read `data`, and contexts that begin with `bos`."""
    for part in zipfile.ZipFile(data / "BLiMP.zip").infolist():
        if part.filename.endswith(".jsonl") and not Path(part.filename).name.startswith("."):
            (folder / Path(part.filename).name).write_bytes(zipfile.ZipFile(data / "BLiMP.zip").read(part))
    for stock in sorted((STOCK / "blimp").glob("*.yaml")):
        if not stock.stem.startswith("_"):
            task(folder, f"blimp_{stock.stem}", stock, "train", folder / f"{stock.stem}.jsonl")
    context = {"doc_to_text": bos + "{{text.split(' ')[:-1]|join(' ')}}"}
    stock = STOCK / "lambada" / "lambada_openai.yaml"
    task(folder, "lambada_openai", stock, "test", data.resolve() / "lambada_test.jsonl", context)


def task(folder: Path, name: str, stock: Path, split: str, file: Path, more: dict[str, Any] = {}) -> None:  # noqa: B006
    """A task file that is a stock one but for its data."""
    own = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {split: str(file)}}}
    fields = {"include": str(stock), "task": name, **own, **more}
    (folder / f"{name}.yaml").write_text(json.dumps(fields))  # JSON is YAML


def ours(model: str, tasks: Path, name: str, limit: int, out: Path) -> dict[str, Any]:
    """`lm evaluate`."""
    command = [sys.executable, "-m", "launch", "evaluate", model, "--tasks", name, "--limit", str(limit)]
    subprocess.run([*command, "--include-path", str(tasks), "--output", str(out)], check=True)
    return json.loads(out.read_text())


def theirs(tasks: Path, name: str, limit: int, out: Path) -> dict[str, Any]:
    """The harness's own client of a server."""
    where = f"base_url=http://127.0.0.1:{PORT}/v1/completions,model={NAME},tokenizer_backend=remote,timeout=3600"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", where]
    command += ["--tasks", name, "--limit", str(limit), "--include_path", str(tasks), "--output_path", str(out)]
    subprocess.run(command, check=True)
    return json.loads(next(out.rglob("results*.json")).read_text())


def get(path: str) -> Any:
    """The JSON that the server answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}") as answer:
        return json.load(answer)


def served(model: str) -> "subprocess.Popen[bytes]":
    """A server that answers."""
    command = [sys.executable, "-m", "launch", "serve", model, "--port", str(PORT), "--name", NAME]
    server = subprocess.Popen([*command, "--slots", "2", "--length", "1024"])
    while server.poll() is None:
        try:
            get("/health")
            return server
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server ended")


def figures(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """task -> measure -> value."""
    return {
        task: {name: value for name, value in values.items() if isinstance(value, float)}
        for task, values in found["results"].items()
        if task != "blimp"  # the mean of the rest
    }


def right(found: dict[str, dict[str, float]], limit: int) -> int:
    """Documents that are right."""
    return round(sum(values["acc,none"] for values in found.values()) * limit)


def perplexity(found: dict[str, dict[str, float]]) -> str:
    """As text, where a task has one."""
    value = next(iter(found.values())).get("perplexity,none")
    return f"{value:.6f}" if value else ""


def both(model: str, data: Path, names: dict[str, int], folder: Path) -> dict[tuple[str, str], Any]:
    """(task, side) -> the figures of the task and its parts."""
    tasks, server, found = folder / "tasks", served(model), {}
    tasks.mkdir()
    try:
        write_tasks(data, tasks, get("/tokenizer_info").get("bos_token") or "")
        for name, limit in names.items():
            found[name, THEIRS] = figures(theirs(tasks, name, limit, folder / f"their_{name}"))
    finally:
        server.terminate()
        server.wait()
    for name, limit in names.items():
        found[name, OURS] = figures(ours(model, tasks, name, limit, folder / f"our_{name}.json"))
    return found


def main() -> None:
    """Both sides of both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or what else `lm serve` loads")
    parser.add_argument("data", type=Path, help="a folder with lambada_test.jsonl and BLiMP.zip")
    parser.add_argument("--limits", type=int, nargs=2, default=[100, 5], help="documents of LAMBADA, of each of BLiMP")
    parser.add_argument("--keep", action="store_true", help="write the table into benchmarks/RESULTS.md")
    args = parser.parse_args()
    os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1")
    names = dict(zip(("lambada_openai", "blimp"), args.limits, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        found = both(args.model, args.data, names, Path(folder))
    rows = [
        [name, side, f"{right(one, names[name])} of {names[name] * len(one)}", perplexity(one)]
        for (name, side), one in found.items()
    ]
    same = all(found[name, OURS] == found[name, THEIRS] for name in names)
    notes = [f"Every figure of the two sides is {'the same' if same else 'NOT THE SAME'}, to the last bit."]
    notes += [f"    python -m benchmarks.harness {Path(args.model).name} DATA --keep"]
    versions = {name: version(name) for name in ("lm_eval", "jax")}
    notes += [f"{time.strftime('%Y-%m-%d')}.", report.setting(describe(), versions)]
    table = TITLE, ["task", "side", "right", "perplexity"], rows, notes
    report.show(*table)
    if args.keep:
        report.keep("harness", report.markdown(*table))
    if not same:
        raise SystemExit("the two sides differ")


if __name__ == "__main__":
    main()
