#!/usr/bin/env bash
# Slurm for real, on this machine, as root (apt-get install slurm-wlm munge):
#   tests/slurm/two_tasks.sh [PYTHON]
# Two tasks train by `lm launch slurm`; the same again, requeued in the middle; the metrics of both are the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath -s "${1:-.venv/bin/python}")
folder=$(mktemp -d)
export SLURM_CONF=$folder/slurm/slurm.conf JAX_PLATFORMS=cpu LM_CACHE=$folder/cache LM_TEXTS=$folder/texts
tests/slurm/one_node.sh start "$folder/slurm"
trap 'scancel --me || true; tests/slurm/one_node.sh stop "$folder/slurm"' EXIT
"$python" -c "import pathlib, tests.tiny; tests.tiny.write_texts(pathlib.Path('$folder/texts'))"

submit() { # NAME: the job's number
  "$python" -m launch launch slurm --tasks-per-node 2 --sbatch --overcommit --name "$1" tests.slurm.page --workdir "$folder/$1" |
    sed -n 's/^job \([0-9]*\):.*/\1/p'
}
state() { squeue --noheader --format=%T --jobs "$1" 2>/dev/null || true; }
finish() { # JOB NAME: wait for its end
  while [ -n "$(state "$1")" ]; do sleep 1; done
  grep -q "report:" "$folder/$2"/slurm-*.log || { cat "$folder/$2"/slurm-*.log; exit 1; }
}

job=$(submit straight)
if "$python" -m launch launch slurm --tasks-per-node 2 --name straight tests.slurm.page --workdir "$folder/again"; then
  echo "a name that is taken was not refused" && exit 1
fi
finish "$job" straight
echo "straight: job $job ended, $(wc -l < "$folder/straight/metrics.jsonl") lines of metrics"

job=$(submit requeued)
until [ "$(cat "$folder/requeued/metrics.jsonl" 2>/dev/null | wc -l)" -ge 120 ]; do sleep 0.2; done
scontrol requeue "$job"
echo "requeued: job $job after $(wc -l < "$folder/requeued/metrics.jsonl") lines"
until [ "$(state "$job")" = PENDING ]; do sleep 0.5; done
scontrol update "job=$job" StartTime=now # Slurm waits two minutes before it starts one again
finish "$job" requeued
grep -h "processes stop after step\|resumed from\|report:" "$folder/requeued"/slurm-*.log
"$python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path
from tests.several import same
print(f"the metrics of both are within {same(Path(sys.argv[1]) / 'requeued', Path(sys.argv[1]) / 'straight'):.1e}")
PYTHON
rm -rf "$folder/texts" "$folder/cache"
