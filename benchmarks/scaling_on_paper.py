"""Scaling on paper: estimated step time and MFU of Llama 3 8B and 70B on 16 to 4,096 v5p chips.

    python -m benchmarks.scaling_on_paper [--compile SIZE:CHIPS:KIND ...]

Weak scaling has one row of 8,192 tokens a chip; strong scaling 1,024 rows in all. Each point is the best mesh, remat
and micro-batches of `lm plan --search`, by arithmetic (hollow), or compiled where --compile asked for it (solid).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
DATA, PICTURE = ROOT / "plans" / "scaling.json", ROOT.parent / "docs" / "scaling.png"
SLICES = {
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}
ROWS = {"weak": 0, "strong": 1024}
SIZES = ("8b", "70b")


def point(size: str, chips: int, kind: str, compiled: int = 0) -> dict[str, Any]:
    """The best plan of one point, the best `compiled` by arithmetic compiled."""
    rows = ROWS[kind] / chips if ROWS[kind] else 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plans.json"
        by = ["--compile", str(compiled)] if compiled else ["--analytic"]
        command = ["plan", f"experiments.llama:llama3_{size}", "--topology", f"v5p:{SLICES[chips]}", "--search", *by]
        told = [*command, "--set", f"rows_per_device={rows:g}", "--json", str(file)]
        ran = subprocess.run([sys.executable, "-m", "launch", *told], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if ran.returncode:
            return dict(size=size, chips=chips, kind=kind, failure=ran.stderr.decode().strip())
        best = json.loads(file.read_text())[0]
    names = ("settings", "source", "seconds", "mfu", "tokens_per_second", "bottleneck")
    return dict(size=size, chips=chips, kind=kind, **{name: best[name] for name in names})


def draw(points: list[dict[str, Any]]) -> None:
    """Step time and MFU over the chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for colour, size in enumerate(SIZES):
        for kind, style in (("weak", "-"), ("strong", "--")):
            line = [p for p in points if (p["size"], p["kind"]) == (size, kind) and "seconds" in p]
            for ax, ys in ((axes[0], [p["seconds"][1] for p in line]), (axes[1], [100 * p["mfu"] for p in line])):
                ax.plot([p["chips"] for p in line], ys, style, color=f"C{colour}", label=f"{size.upper()}, {kind}")
                for p, y in zip(line, ys, strict=True):
                    inside = f"C{colour}" if p["source"] == "compiled" else "white"
                    ax.plot(p["chips"], y, "o", color=f"C{colour}", markerfacecolor=inside, markersize=5)
    for ax, name in zip(axes, ("seconds a step", "MFU, %"), strict=True):
        ax.set(xscale="log", xlabel="v5p chips", ylabel=name)
        ax.set_xticks(list(SLICES), [str(n) for n in SLICES], fontsize=8)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Llama 3 on paper: hollow points by arithmetic, solid ones compiled", fontsize=10)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Plan the points that are not there, compile those that are asked, and draw all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", nargs="+", default=[], metavar="SIZE:CHIPS:KIND", help="as in 8b:64:weak")
    asked = parser.parse_args().compile
    known = json.loads(DATA.read_text()) if DATA.exists() else []
    points = {(p["size"], p["chips"], p["kind"]): p for p in known}
    for size in SIZES:
        for kind in ROWS:
            for chips in SLICES:
                key, wanted = (size, chips, kind), f"{size}:{chips}:{kind}" in asked
                if wanted or key not in points:
                    points[key] = point(*key, compiled=int(wanted))
                    print(points[key], flush=True)
                    DATA.write_text(json.dumps(list(points.values()), indent=1) + "\n")
    draw(list(points.values()))


if __name__ == "__main__":
    main()
