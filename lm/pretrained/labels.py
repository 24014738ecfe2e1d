"""What the scores of a classifier mean: the fields id2label, num_labels and problem_type of config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lm.pretrained.fields import Fields

LABELS = 2  # which transformers leaves out
MULTIPLE, REGRESSION = "multi_label_classification", "regression"
PROBLEMS = ("single_label_classification", MULTIPLE, REGRESSION)


class Found(NamedTuple):
    """A label and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Labels:
    """The `names` of scores, and which `problem` of PROBLEMS they solve; "": as many names as scores say, one of them a
    number (a reward), several one choice."""

    names: tuple[str, ...] = ()
    problem: str = ""

    @property
    def chosen(self) -> bool:
        """Whether scores are of classes, and not numbers of their own."""
        return self.problem != REGRESSION and (len(self.names) > 1 or self.problem == MULTIPLE)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Of scores [..., n], the probability of each class: of one among all, or each by itself."""
        x = np.asarray(scores, np.float64)
        if self.problem == MULTIPLE:
            return 1 / (1 + np.exp(-x))
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def of(self, scores: np.ndarray) -> list[Found]:
        """The labels of scores [n], the likeliest first: one, or of several at a time those of probability 1/2 on."""
        probs = self.probabilities(scores)
        order = np.argsort(-probs, kind="stable")
        kept = order[probs[order] >= 0.5] if self.problem == MULTIPLE else order[:1]
        return [Found(self.names[i], float(probs[i])) for i in kept]

    def fields(self) -> dict[str, Any]:
        """The fields of config.json that `read` reads; none without names."""
        if not self.names:
            return {}
        names = {
            "id2label": {str(i): label for i, label in enumerate(self.names)},
            "label2id": {label: i for i, label in enumerate(self.names)},
        }
        return names | ({"problem_type": self.problem} if self.problem else {})


def default_labels(count: int) -> Labels:
    """The labels that transformers gives `count` scores."""
    return Labels(tuple(f"LABEL_{i}" for i in range(count)))


def read(fields: Fields) -> Labels:
    """The labels of a config.json. Raises ValueError where they contradict each other."""
    known, count = fields.take("id2label", None), fields.integer("num_labels", None)
    problem = fields.take("problem_type", None) or ""
    if problem not in ("", *PROBLEMS):
        raise fields.unsupported("problem_type", problem, ", ".join(PROBLEMS))
    if known is None:
        return Labels(default_labels(count or LABELS).names, problem)
    names = _in_order(known)
    if not names:
        raise fields.unsupported("id2label", known, "a name of each label, 0 to their number less 1")
    if count and len(names) != count:
        raise fields.unsupported("num_labels", count, f"{len(names)}, the labels of id2label")
    return Labels(names, problem)


def _in_order(known: Any) -> tuple[str, ...]:
    """The names of {"0": name, "1": name, ...}; none where it is something else."""
    if not isinstance(known, Mapping):
        return ()
    by_id = {str(id): str(name) for id, name in known.items()}
    ids = [str(i) for i in range(len(by_id))]
    return tuple(by_id[id] for id in ids) if set(ids) == set(by_id) else ()
