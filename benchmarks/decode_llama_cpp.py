"""Worker of benchmarks/decode.py: llama.cpp, by its own C functions; greedy, and no id ends a text."""

import ctypes
from typing import Any

import llama_cpp.llama_cpp as library
import numpy as np

from benchmarks.decode_jobs import JOBS, NEW, prompts
from benchmarks.worker import Train, serve

ROWS, CONTEXT = 16, 1024  # sequences, and tokens of each


def build(settings: dict[str, Any]) -> Train:
    """Load the file."""
    library.llama_backend_init()
    quiet = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(quiet, ctypes.c_void_p(0))
    how = library.llama_model_default_params()
    how.use_extra_bufts = False  # with them 0.3.36 was seen to end its process
    model = library.llama_model_load_from_file(settings["file"].encode(), how)
    options = library.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_seq_max = ROWS * CONTEXT, 1024, ROWS
    options.n_threads = options.n_threads_batch = settings["threads"]
    context = library.llama_init_from_model(model, options)
    vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    batch = library.llama_batch_init(1024, 0, 1)

    def read(rows: list[list[int]], start: int) -> list[int]:
        """The likeliest token after each row, whose ids begin at `start`."""
        last, n = [], 0
        for row, ids in enumerate(rows):
            for place, token in enumerate(ids):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, start + place, 1
                batch.seq_id[n][0], batch.logits[n] = row, place == len(ids) - 1
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        assert library.llama_decode(context, batch) == 0
        logits = (library.llama_get_logits_ith(context, i) for i in last)
        return [int(np.ctypeslib.as_array(row, (vocab,)).argmax()) for row in logits]

    def run(number: int) -> float:
        job = JOBS[number]
        if job == "nothing":
            return 0.0
        library.llama_memory_clear(library.llama_get_memory(context), True)
        rows, new = prompts(job, vocab), NEW[job]
        tokens, start = read(rows, 0), len(rows[0])
        for i in range(new - 1):
            tokens = read([[token] for token in tokens], start + i)
        return float(new * len(rows))

    run.__dict__["kept"] = quiet  # a callback that is collected would be called all the same
    return run


if __name__ == "__main__":
    serve(build, ["llama_cpp_python"])
