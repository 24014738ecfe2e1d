"""llama.cpp's side: the ids, the logits and the greedy text of each GGUF file of a folder.

    PYTHON_WITH_LLAMA_CPP certificates/llama_cpp_worker.py FOLDER

wanted.json says what to do with each file, found.json is what came of it. Keys and values are kept in float32, and
matrices as they lie in the file: on a machine whose CPU lists AMX, llama-cpp-python 0.3.36 did not survive its own
layout of q8_0 for it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as library

F32 = 0  # GGML's code of float32


DEFAULTS = library.llama_model_default_params


def as_in_the_file() -> library.llama_model_params:
    """llama.cpp's defaults, without layouts of its own."""
    params = DEFAULTS()
    params.use_extra_bufts = False
    return params


def run(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp makes of one file."""
    model = llama_cpp.Llama(
        str(folder / task["file"]),
        n_ctx=task["context"],
        n_threads=2,
        type_k=F32,
        type_v=F32,
        logits_all=True,
        verbose=False,
    )
    prompt, found = list(task["prompt"]), []
    while len(found) < task["tokens"]:
        model.reset()
        model.eval(prompt + found)
        logits = np.asarray(model.scores[model.n_tokens - 1])
        found.append(int(logits.argmax()))
    model.reset()
    model.eval(prompt)
    return {
        "ids": [model.tokenize(text.encode(), add_bos=True) for text in task["texts"]],
        "greedy": found,
        "text": model.detokenize(found).decode(errors="replace") if task["texts"] else "",
        "logits": [float(x) for x in model.scores[model.n_tokens - 1]],
        "ends": [id for id in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(model._model.vocab, id)],
        "template": model.metadata.get("tokenizer.chat_template"),
    }


def main() -> None:
    """Run every task of FOLDER/wanted.json."""
    folder = Path(sys.argv[1])
    library.llama_model_default_params = as_in_the_file
    tasks = json.loads((folder / "wanted.json").read_text())
    (folder / "found.json").write_text(json.dumps([run(folder, task) for task in tasks]))


if __name__ == "__main__":
    main()
