"""Running a study's processes under Slurm: one array, a task for each group of runs.

`sbatch` submits it, with the options that it is given (partition, time, devices); its tasks read their command lines
from a file in the study's folder. This process waits, and cancels the array where it is interrupted.
"""

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lm.study.local import command
from lm.study.trial import Trial

LOOK_SECONDS = 2.0
TASKS = "slurm-tasks.txt"  # in the study's folder: a command line a task


class Slurm:
    """An array job submitted with `options` of sbatch, its tasks on `devices`; runs that share a task go `together` as
    lm/study/together.py's HOW says."""

    def __init__(self, options: str = "", devices: str = "", together: str = "auto"):
        if not shutil.which("sbatch"):
            raise ValueError("--executor slurm: sbatch is not on the PATH; run on a node that submits jobs")
        self.options, self.devices, self.together = shlex.split(options), devices, together

    def __call__(self, groups: Sequence[Sequence[Trial]], study: Path, watch: Callable[[], None]) -> None:
        """Submit all `groups`, and wait until none is waiting or running."""
        job = self._submit(groups, study.resolve())
        try:
            while _alive(job):
                time.sleep(LOOK_SECONDS)
                watch()
        except BaseException:
            subprocess.run(["scancel", job], check=False)
            raise

    def _submit(self, groups: Sequence[Sequence[Trial]], study: Path) -> str:
        options = "--devices", self.devices, "--together", self.together
        lines = [
            f"{shlex.join(command(group, study, *options))} "
            f">> {shlex.quote(str(group[0].folder(study) / 'log.txt'))} 2>&1"
            for group in groups
        ]
        (study / TASKS).write_text("\n".join(lines) + "\n")
        task = f'eval "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(study / TASKS))})"'
        asked = ["sbatch", "--parsable", f"--array=0-{len(groups) - 1}", f"--job-name={study.name}"]
        asked += [f"--output={study}/slurm-%A_%a.log", *self.options, "--wrap", task]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"sbatch refused the study: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip().partition(";")[0]


def _alive(job: str) -> bool:
    """Whether a task of `job` is waiting or running; a queue that does not answer counts as yes."""
    asked = ["squeue", "--noheader", "--format=%t", "--jobs", job]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        return "Invalid job id" not in done.stderr
    return bool(done.stdout.strip())
