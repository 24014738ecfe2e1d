#!/bin/sh
# transformers 5 cuts the blocks of an FP8 matrix by the number of its scales, and not by weight_block_size.
#
# In DeepSeek-V3's files a matrix [rows, columns] of float8_e4m3fn has a scale for each block of 128 by 128 numbers, and the
# last block of a row or column is what is left: kv_a_proj_with_mqa, [576, 7168], has [5, 56] scales. Read with
# FineGrainedFP8Config(dequantize=True), a block is taken to be rows / scales long: 576 / 5 is no whole number, an error; a
# matrix of 192 rows has 2 scales, and is read in blocks of 96 rows, so that rows 96 to 127 get the scale of the next block.
# That one is not told: the weights are others. Seen with transformers 5.23.0 and torch 2.13.0.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'END'
import torch
import transformers
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

dequantize = Fp8Dequantize(None)._dequantize_one
numbers = torch.ones(192, 128).to(torch.float8_e4m3fn)
scales = torch.tensor([[1.0], [2.0]])  # of rows 0 to 127, and 128 to 191
found = dequantize(numbers, scales, torch.float32)[:, 0]
wrong = [row for row in range(192) if found[row] != scales[row // 128, 0]]
print(f"transformers {transformers.__version__}: 192 rows in blocks of 128: rows {wrong[0]} to {wrong[-1]} have another scale")
try:
    dequantize(torch.ones(576, 128).to(torch.float8_e4m3fn), torch.ones(5, 1), torch.float32)
    told = ""
except ValueError as error:
    told = str(error)
print(f"576 rows: {told or 'read'}")
assert wrong == list(range(96, 128)) and told, "blocks are cut by weight_block_size now"
END
