#!/bin/sh
# `import jax` reads and parses the METADATA of every package that is installed, whatever it is: jax.numpy looks through
# them for a ROCm plugin by name. So the same JAX takes longer to import the more there is beside it in an environment.
#
# Seen with jax 0.10.2, Python 3.11: all of 2,000 packages that are nothing but a name and a page of description were
# opened, and the import took 0.57 s in place of 0.44. Of 115 real ones, with classifiers and requirements, it was 0.03 s.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - "$folder/beside" <<'END'
import pathlib
import sys

for number in range(2000):
    package = pathlib.Path(sys.argv[1]) / f"beside_{number}-1.0.dist-info"
    package.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: beside-{number}\nVersion: 1.0\n\n"
    (package / "METADATA").write_text(head + "A line of a long description.\n" * 100)
END
cat > "$folder/import.py" <<'END'
import sys
import time

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
start = time.perf_counter()
import jax  # noqa: E402

seconds = time.perf_counter() - start
print(sum("beside_" in name and name.endswith("METADATA") for name in opened), f"{seconds:.2f}", jax.__version__)
END
export JAX_PLATFORMS=cpu
"$folder/venv/bin/python" "$folder/import.py" > /dev/null # writes the bytecode
"$folder/venv/bin/python" "$folder/import.py" > "$folder/alone"
PYTHONPATH="$folder/beside" "$folder/venv/bin/python" "$folder/import.py" > "$folder/among"
read -r none alone version < "$folder/alone"
read -r count among _ < "$folder/among"
echo "jax $version imported in $alone s; beside 2,000 packages in $among s, of which it opened the METADATA of $count"
test "$none" -eq 0
test "$count" -eq 2000
