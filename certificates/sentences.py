"""Vectors of texts against sentence-transformers, by folders that it saves: texts in, vectors out.

.venv-certificates/bin/python -m certificates.sentences make FOLDER     models with tokenizers and modules; its vectors
.venv/bin/python -m certificates.sentences ours FOLDER                  ours, of the same folders and texts
.venv-certificates/bin/python -m certificates.sentences check FOLDER    the table; 1 where one differs
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from certificates.cases import BERT, LLAMA, MODERNBERT, T5, array
from certificates.decoders import TEXT_SIZES

LIMIT = 1e-5  # of the vectors' size, their root mean square
SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")
BOTH, END, START, NONE = "<s> $A </s>", "$A </s>", "<s> $A", "$A"  # what a tokenizer puts around a text
VOCAB, LONGEST = 300, 24
TEXTS = (
    "A text of some words, neither long nor short.",
    "short",
    "Ünïcode, 数字 and a tab\tin between",
    "  spaces before, and one text that is longer than all that is read: its end is cut. " * 3,
    "The same words, another order; some words of a text.",
)
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
GEMMA = TEXT_SIZES | dict(
    vocab_size=VOCAB, head_dim=12, sliding_window=8, num_hidden_layers=4, sliding_window_pattern=2
)
QWEN = LLAMA | dict(vocab_size=VOCAB, head_dim=12, use_sliding_window=False)


class SentenceCase(NamedTuple):
    """One folder: transformers' class and config, what its tokenizer puts around a text, the poolings that are joined,
    the sizes and activations of dense layers, whether vectors have length 1, and the prompt of default."""

    shape: str
    architecture: str
    fields: dict[str, Any]
    around: str = BOTH
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[tuple[int, str, bool], ...] = ()  # outputs, a class of torch.nn, biased
    normalize: bool = True
    default: str | None = None

    @property
    def name(self) -> str:
        """A folder's name."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.architecture} {self.shape}")


CASES = (
    SentenceCase(
        "EmbeddingGemma's: both directions, mean, two dense layers",
        "Gemma3TextModel",
        GEMMA | dict(use_bidirectional_attention=True),
        dense=((96, "Identity", False), (32, "Identity", False)),
    ),
    SentenceCase(
        "one kv head, three layers, tanh, a default prompt",
        "Gemma3TextModel",
        GEMMA | dict(use_bidirectional_attention=True, num_key_value_heads=1, num_hidden_layers=3, sliding_window=5),
        dense=((40, "Tanh", True),),
        default="document",
    ),
    SentenceCase("first token", "BertModel", BERT | dict(vocab_size=VOCAB), pooling=("cls",)),
    SentenceCase(
        "four poolings, not of length 1",
        "BertModel",
        BERT | dict(vocab_size=VOCAB, num_attention_heads=2, hidden_act="relu"),
        pooling=("max", "mean_sqrt_len_tokens", "weightedmean", "cls"),
        normalize=False,
    ),
    SentenceCase("first token", "ModernBertModel", MODERNBERT | dict(vocab_size=VOCAB), pooling=("cls",)),
    SentenceCase("last token, an end", "Qwen3Model", QWEN, END, ("lasttoken",), default="query"),
    SentenceCase("last token, nothing around a text", "Qwen3Model", QWEN | dict(head_dim=20), NONE, ("lasttoken",)),
    SentenceCase(
        "last token and mean, a start", "LlamaModel", LLAMA | dict(vocab_size=VOCAB), START, ("lasttoken", "mean")
    ),
    SentenceCase(
        "an encoder's mean, a dense layer",
        "T5EncoderModel",
        T5 | dict(vocab_size=VOCAB),
        END,
        dense=((20, "Identity", False),),
    ),
)


def make_tokenizer(case: SentenceCase, folder: Path) -> None:
    """A byte-level BPE of this library's own documents, as transformers saves one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    made.train_from_iterator([Path(__file__).read_text()], trainer)
    named = [(name, made.token_to_id(name)) for name in SPECIAL]
    made.post_processor = processors.TemplateProcessing(single=case.around, special_tokens=named)
    roles = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(folder)


def make(folder: Path) -> None:
    """Models with our values; their vectors, without and with each prompt."""
    import sentence_transformers
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file
    from sentence_transformers import models

    for case in CASES:
        kind, plain, at = getattr(transformers, case.architecture), folder / f"{case.name}-plain", folder / case.name
        kind(kind.config_class(**case.fields)).save_pretrained(plain)
        shapes = {n: x.shape for n, x in load_file(plain / "model.safetensors").items()}
        save_file({n: array(n, s) for n, s in shapes.items()}, plain / "model.safetensors", {"format": "pt"})
        make_tokenizer(case, plain)
        modules: list[Any] = [models.Transformer(str(plain), max_seq_length=LONGEST)]
        modules.append(models.Pooling(modules[0].get_embedding_dimension(), case.pooling))
        for size, activation, biased in case.dense:
            width = modules[-1].get_embedding_dimension()
            modules.append(models.Dense(width, size, biased, getattr(torch.nn, activation)()))
        modules += [models.Normalize()] if case.normalize else []
        model = sentence_transformers.SentenceTransformer(
            modules=modules, prompts=PROMPTS, default_prompt_name=case.default, device="cpu"
        )
        model.save(str(at))
        model = sentence_transformers.SentenceTransformer(str(at), device="cpu")
        given = {name or "none": model.encode(list(TEXTS), prompt_name=name) for name in (None, *PROMPTS)}
        np.savez(at / "reference.npz", **given)


def ours(folder: Path) -> None:
    """Our vectors."""
    from lm.pretrained import load

    for case in CASES:
        model = load(folder / case.name)
        given = {name or "none": model.embed(TEXTS, prompt=name) for name in (None, *PROMPTS)}
        np.savez(folder / case.name / "ours.npz", **given)


def check(folder: Path) -> int:
    """The table; 1 where a line differs."""
    import sentence_transformers

    kinds = ("none", *PROMPTS)
    print(f"| model | shape | numbers | {' | '.join(f'prompt {kind} / size' for kind in kinds)} |")
    print("|---" * (3 + len(kinds)) + "|")
    fine = True
    for case in CASES:
        theirs, mine = (np.load(folder / case.name / name) for name in ("reference.npz", "ours.npz"))
        apart = [_apart(mine[kind], theirs[kind]) for kind in kinds]
        fine &= max(apart) < LIMIT
        print(f"| {case.architecture} | {case.shape} | {theirs['none'].shape[1]} | {_shown(apart)} |")
    print(f"sentence-transformers {sentence_transformers.__version__}")
    return int(not fine)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, in parts of b's size."""
    return float(np.abs(a - b).max() / np.sqrt(np.mean(b**2))) if a.shape == b.shape else float("inf")


def _shown(apart: Sequence[float]) -> str:
    return " | ".join(f"{x:.1e}" + ("" if x < LIMIT else " **fails**") for x in apart)


if __name__ == "__main__":
    verb, at = sys.argv[1], Path(sys.argv[2])
    sys.exit({"make": make, "ours": ours, "check": check}[verb](at))
