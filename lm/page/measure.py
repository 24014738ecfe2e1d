"""A number that people read: how it is called, and how it is written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number in which held-out data are measured: its `name` in metrics.jsonl, its `title` and `unit`; a `percent` is
    a share from 0 to 1; of two values the lower is the better one, or the higher."""

    name: str
    title: str
    unit: str = ""
    percent: bool = False
    higher_is_better: bool = False

    def format(self, value: float | None) -> str:
        """`value` as text; nothing where there is none."""
        if value is None:
            return ""
        return f"{value:.1%}" if self.percent else f"{value:.3f}" if value < 1000 else f"{value:,.0f}"
