"""What does the KL penalty hold back? PPO with and without it beside best-of-16, by the reward model and by the rule.

    lm train experiments.rlhf.reviews:pretrained
    lm train experiments.rlhf.reviews:sft
    lm train experiments.rlhf.reviews:reward
    lm study experiments.course.rlhf
    python -m experiments.course.rlhf runs/kl_penalty docs/course/rlhf.svg

The last command draws what each run reached over how far it went. docs/course/rlhf.md has what was measured.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.course.figure import alone
from experiments.rlhf import instructgpt as page
from lm.page.plots import Dots, chart
from lm.study.ablation import Ablation
from lm.study.statistics import student
from lm.tune.kl_control import FixedKL

MEASURES = {"Rule": "rule", "scorer": "score", "kl": "KL, nats", "completion_length": "tokens"}
PLACE = "evaluations/completions/prompts/"

ppo: Any = page.instructgpt.arms["ppo"]

kl_penalty = Ablation(
    page.base,
    arms={
        "sft": {},
        "best_of_16": page.instructgpt.arms["best_of_n"],
        "ppo": ppo,
        "ppo_without_kl": {**ppo, "method": replace(ppo["method"], kl=FixedKL(0.0))},
    },
    seeds=range(6),
    match="steps",
    measure="completions/prompts/Rule",
)


def reached(run: Path) -> dict[str, float]:
    """MEASURES of a run's last evaluation."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    last = [line for line in lines if PLACE + "kl" in line][-1]
    return {name: last[PLACE + name] for name in MEASURES}


def main(study: Path, out: Path) -> None:
    """Print means over the seeds with half of their 95% intervals, and what the penalty gained; write the figure."""
    runs = {arm: [reached(run) for run in sorted((study / "runs" / arm).iterdir())] for arm in kl_penalty.arms}
    print(f"{'':15}" + "".join(f"{title:>16}" for title in MEASURES.values()))
    for arm, own in runs.items():
        means = [student([run[name] for run in own]) for name in MEASURES]
        print(f"{arm:15}" + "".join(f"{f'{mean.value:.2f} ± {mean.half_width:.2f}':>16}" for mean in means))
    both = zip(runs["ppo"], runs["ppo_without_kl"], strict=True)
    gain = student([kept["Rule"] - free["Rule"] for kept, free in both])
    print(f"by the rule ppo less ppo_without_kl: {gain.value:+.2f} [{gain.low:.2f}, {gain.high:.2f}], paired by seed")
    every = [(max(run["kl"], 0.0) ** 0.5, run) for own in runs.values() for run in own]
    dots = {title: [(far, run[name]) for far, run in every] for title, name in (("score", "scorer"), ("rule", "Rule"))}
    series = [
        Dots([x for x, _ in points], [y for _, y in points], title, colour)
        for colour, (title, points) in enumerate(dots.items())
    ]
    drawn = chart("rlhf", series, size=(5.2, 2.8), across="√KL from the start, nats")
    out.write_text(alone(drawn), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.course.rlhf runs/kl_penalty FILE.svg")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
