"""The side of transformers: makes the checkpoints and says what they give; reads what we wrote.

python -m certificates.reference make FOLDER      checkpoints, logits, greedy continuations
python -m certificates.reference check FOLDER     the logits of our exports
python -m certificates.reference record FOLDER    a few of the numbers, for the tests: their recorded.json

Words behind FOLDER: the cases alone in whose name one of them occurs; what is recorded of the others stays.
"""

import copy
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from certificates.cases import CASES, NEW, Case, array, inputs, prompts
from certificates.mixers import MIXERS, MixerCase, attention_mask, hidden_states, tensor

CONFIGS = {
    "GPT2": "GPT2Config",
    "GptOss": "GptOssConfig",
    "Gemma3ForConditionalGeneration": "Gemma3Config",
    **{f"{name}ForConditionalGeneration": f"{name}Config" for name in ("Qwen3_5", "Qwen3_5Moe")},
    **{f"{name}ForCausalLM": f"{name}TextConfig" for name in ("Qwen3_5", "Qwen3_5Moe")},
    "Gemma3": "Gemma3TextConfig",
    "Gemma4ForConditionalGeneration": "Gemma4Config",
    "Gemma4": "Gemma4TextConfig",
    **{name: f"{name}Config" for name in ("T5Gemma2", "T5Gemma", "T5", "MT5", "UMT5")},
    "Bert": "BertConfig",
    **{name: f"{name}Config" for name in ("Roberta", "XLMRoberta", "Camembert", "DistilBert", "ModernBert")},
}


# poolers, and what belongs to the images of T5Gemma 2, which transformers draws anew
UNWRITTEN = re.compile(
    r"pooler|^model\.(en|de)coder\.(embed_tokens\.eoi|multi_modal|vision_tower|text_model\.embed_tokens\.eoi)"
)


def config_class(case: Case) -> type:
    """The class of a case's configuration."""
    name = next((name for start, name in CONFIGS.items() if case.architecture.startswith(start)), None)
    return getattr(transformers, name or re.sub("ForCausalLM$|Model$", "Config", case.architecture))


def config(case: Case) -> object:
    """The configuration of a case."""
    return config_class(case)(**copy.deepcopy(case.fields))


def make(case: Case, folder: Path) -> None:
    """The checkpoint of a case with our values, and what it gives."""
    kind = getattr(transformers, case.architecture)
    model = kind(config(case))
    own = hasattr(getattr(model, "lm_head", None), "weight")
    if own and case.fields.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # T5 1.1 says one, keeps two
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    save_file({n: array(n, s) for n, s in shapes.items()}, folder / "model.safetensors", {"format": "pt"})
    if case.architecture.startswith("T5For") and case.fields.get("tie_word_embeddings") is False:
        said = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(said))  # as the published files have it
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    given = {"logits": logits(model, case)}
    if model.can_generate():
        given["greedy"] = greedy(model, case)
    np.savez(folder / "reference.npz", **given)


@torch.no_grad()
def logits(model: torch.nn.Module, case: Case) -> np.ndarray:
    """The logits of the case's inputs; hidden states where there is no output."""
    out = model(**{name: torch.tensor(value) for name, value in inputs(case).items()})
    named = ("prediction_logits", "logits", "last_hidden_state")
    return next(out[name] for name in named if name in out).numpy()


@torch.no_grad()
def greedy(model: torch.nn.Module, case: Case) -> np.ndarray:
    """The NEW tokens after the prompt."""
    ids = torch.tensor(prompts(case))
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    return out[0, -NEW:].numpy()


def check(case: Case, folder: Path) -> None:
    """The logits of our export."""
    written = folder / "export"
    name = json.loads((written / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(
        written, attn_implementation="eager", output_loading_info=True
    )
    odd = sorted(k for k in [*info["missing_keys"], *info["unexpected_keys"]] if not UNWRITTEN.search(k))
    np.savez(folder / "again.npz", logits=logits(model.eval(), case), odd=np.array(odd, dtype=str))


@torch.no_grad()
def make_mixer(case: MixerCase, folder: Path) -> None:
    """What a module gives: of padded rows (`full`), and of the last token behind a cache of the others (`next`), whose
    recurrent state it leaves."""
    cfg = getattr(transformers, case.config)(**case.fields)
    module = getattr(qwen3_next, case.module)(cfg, layer_idx=0).eval()
    module.load_state_dict({n: torch.tensor(tensor(n, tuple(w.shape))) for n, w in module.state_dict().items()})
    x, cache = torch.tensor(hidden_states(case)), transformers.DynamicCache(config=cfg)
    full = module(x, attention_mask=torch.tensor(attention_mask()))
    module(x[:, :-1], cache_params=cache)
    given = dict(full=full, next=module(x[:, -1:], cache_params=cache), state=cache.get_recurrent_state(0, state_idx=0))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "reference.npz", **{name: value.numpy() for name, value in given.items()})


TESTS = Path(__file__).parent.parent / "tests"
FEW_OF_A_MIXER = {"full": (slice(None), slice(12, None, 30)), "next": (), "state": (0, slice(None), 0)}
FEW = (slice(None), slice(12, None, 9), slice(3, None, 31))  # of [B, T, V]


def record(folder: Path, words: Sequence[str]) -> None:
    """Of each case its config, the shapes of its tensors, some logits and the greedy continuation."""
    known = json.loads((TESTS / "pretrained" / "recorded.json").read_text())
    found = {}
    for case in CASES:
        if not case.named(words):
            found[case.name] = known[case.name]
            continue
        here = folder / case.name
        given = np.load(here / "reference.npz")
        with safe_open(here / "model.safetensors", "np") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        found[case.name] = {
            "config": json.loads((here / "config.json").read_text()),
            "tensors": shapes,
            "std": float(given["logits"].std()),
            "logits": given["logits"][FEW].round(7).tolist(),
            "greedy": given["greedy"].tolist() if "greedy" in given else None,
        }
    write_lines(found, TESTS / "pretrained" / "recorded.json")
    if words:
        return
    mixers = {}
    for mixer in MIXERS:
        given = np.load(folder / mixer.name / "reference.npz")
        mixers[mixer.name] = {
            n: [float(given[n].std()), given[n][few].round(7).tolist()] for n, few in FEW_OF_A_MIXER.items()
        }
    write_lines(mixers, TESTS / "model" / "recorded.json")


def write_lines(found: dict[str, object], path: Path) -> None:
    """JSON with a line a case."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(verb: str, folder: str, *words: str) -> None:
    """Run `make` or `check` on every case, or `record` them all."""
    if verb == "record":
        return record(Path(folder), words)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for case in (case for case in CASES if case.named(words)):
        {"make": make, "check": check}[verb](case, Path(folder) / case.name)
    for mixer in MIXERS if verb == "make" and not words else ():
        make_mixer(mixer, Path(folder) / mixer.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
