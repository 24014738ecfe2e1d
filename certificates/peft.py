"""Adapters against PEFT, in both directions: ours reads what it writes, and it reads what ours writes.

.venv-certificates/bin/python -m certificates.peft make FOLDER      models, adapters of PEFT, and their logits
.venv/bin/python -m certificates.peft ours FOLDER                   our logits with these; adapters of ours, logits
.venv-certificates/bin/python -m certificates.peft check FOLDER     PEFT's logits with ours; 1 where a line differs
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 1e-5  # of the standard deviation of the logits
IDS = np.random.default_rng(0).integers(0, 37, (2, 11))
SMALL = dict(vocab_size=37, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
LLAMA = ("LlamaConfig", {**SMALL, "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.3})
TIED = (LLAMA[0], {**LLAMA[1], "tie_word_embeddings": True})
QWEN = ("Qwen2Config", {**LLAMA[1], "tie_word_embeddings": False})
MIXTRAL = ("MixtralConfig", {**LLAMA[1], "num_local_experts": 3, "num_experts_per_tok": 2})
OSS = ("GptOssConfig", {**MIXTRAL[1], "head_dim": 8, "sliding_window": 7})
GEMMA4 = (
    "Gemma4TextConfig",
    {**LLAMA[1], "head_dim": 4, "global_head_dim": 8, "sliding_window": 5, "hidden_size_per_layer_input": 0}
    | dict(enable_moe_block=True, num_experts=3, top_k_experts=2, moe_intermediate_size=12)
    | dict(rms_norm_eps=0.1, initializer_range=0.1),
)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
GEMMA = ("Gemma2Config", {**LLAMA[1], "head_dim": 4})
SEEING = (
    "Gemma3Config",
    dict(
        text_config={**LLAMA[1], "head_dim": 4, "sliding_window": 5},
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=16,
            patch_size=4,
            vision_use_head=False,
        ),
        mm_tokens_per_image=4,
        image_token_index=36,
        boi_token_index=34,
        eoi_token_index=35,
    ),
)
GPT2 = ("GPT2Config", dict(vocab_size=37, n_embd=16, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3))
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# name -> (the base, LoraConfig of PEFT's adapter, the value of ours or None)
CASES: dict[str, tuple[tuple[str, dict[str, Any]], dict[str, Any], dict[str, Any] | None]] = {
    "lora": (LLAMA, dict(target_modules=["q_proj", "v_proj"]), dict(where="query|value|mlp")),
    "lora, tied": (TIED, dict(target_modules="all-linear"), dict(where="layers/.*")),
    "rslora": (LLAMA, dict(target_modules=ATTENTION, use_rslora=True), dict(where="query|out", rslora=True)),
    "dora": (LLAMA, dict(target_modules="all-linear", use_dora=True), dict(where="layers/.*", dora=True)),
    "dora, rslora": (
        QWEN,
        dict(target_modules=ATTENTION, use_dora=True, use_rslora=True),
        dict(dora=True, rslora=True),
    ),
    "patterns": (
        LLAMA,
        dict(
            target_modules=["q_proj", "k_proj", "down_proj"],
            rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 3, "model.layers.1.mlp.down_proj": 5},
            alpha_pattern={".*_proj": 6, "q_proj": 9},
        ),
        None,
    ),
    "embedding": (LLAMA, dict(target_modules=["embed_tokens", "q_proj"]), dict(where="stem/tokens|query")),
    "embedding, dora": (LLAMA, dict(target_modules=["embed_tokens"], use_dora=True), dict(where="tokens", dora=True)),
    "embedding, tied": (TIED, dict(target_modules=["embed_tokens", "v_proj"]), None),
    "output": (LLAMA, dict(target_modules=["q_proj", "lm_head"]), dict(where="query|kernel")),
    "saved modules": (
        LLAMA,
        dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        dict(where="query", full="head/kernel"),
    ),
    "biases": (QWEN, dict(target_modules=["q_proj", "down_proj"], bias="lora_only"), None),
    "gpt2": (GPT2, dict(target_modules=["c_attn", "c_proj", "c_fc"]), dict(where="query|value|mlp")),
    "gpt2, rslora": (GPT2, dict(target_modules=["c_attn"], use_rslora=True), dict(where="query|key", rslora=True)),
    "gpt2, dora": (GPT2, dict(target_modules=["c_attn", "c_fc"], use_dora=True), dict(where="layers/.*", dora=True)),
    "mixtral": (MIXTRAL, dict(target_modules=["q_proj"], target_parameters=EXPERTS), dict(where="query|mlp")),
    "mixtral, rslora": (
        MIXTRAL,
        dict(target_modules=["w1", "w2", "w3", "gate", "v_proj"], use_rslora=True),
        dict(where="layers/.*", rslora=True),
    ),
    "mixtral, all": (MIXTRAL, dict(target_modules="all-linear"), dict(where="up|router")),
    "gpt-oss": (OSS, dict(target_modules=["q_proj"], target_parameters=EXPERTS), dict(where="query|mlp")),
    "gpt-oss, one": (OSS, dict(target_parameters=EXPERTS[:1]), dict(where="gate|down|router", rslora=True)),
    "gemma 4": (
        GEMMA4,
        dict(target_modules=["q_proj", "router.proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
        dict(where="query|mlp|router"),
    ),
    "gemma 2": (GEMMA, dict(target_modules="all-linear"), dict(where="layers/.*")),
    "vision": (SEEING, dict(target_modules="all-linear"), dict(where="layers/.*")),
    "vision, the tower": (
        SEEING,
        dict(target_modules=r".*vision_tower.*fc[12]"),
        dict(where="vision/.*/query|vision/.*/up"),
    ),
}


def place(folder: Path, name: str) -> Path:
    """The folder of a case."""
    return folder / name.replace(", ", "-").replace(" ", "-")


def make(folder: Path) -> None:
    """Bases and adapters of PEFT, with random factors, and their logits."""
    import peft
    import torch
    import transformers

    for name, ((kind, fields), options, _) in CASES.items():
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**fields)).float()
        base.save_pretrained(place(folder, name) / "base")
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **options)).eval()
        with torch.no_grad():
            for one, parameter in model.named_parameters():
                if parameter.requires_grad:
                    near = parameter if "magnitude" in one else torch.zeros_like(parameter)
                    parameter.copy_(near + 0.2 * torch.randn_like(parameter))
        model.save_pretrained(place(folder, name) / "theirs")
        np.save(place(folder, name) / "theirs.npy", logits(name, model))


def pixels(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids [B, T] of a case, and the images [B, 1, size, size, 3] of a model that reads some."""
    if CASES[name][0] is not SEEING:
        return IDS, None
    ids = IDS % 34
    ids[:, 2:8] = [34, *[36] * 4, 35]
    return ids, np.random.default_rng(1).integers(0, 256, (2, 1, 16, 16, 3)).astype(np.uint8)


def logits(name: str, model: Any) -> np.ndarray:
    """Float32 [B, T, V]."""
    import torch

    ids, images = pixels(name)
    more = {}
    if images is not None:
        seen = ((images[:, 0].astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
        more = dict(pixel_values=torch.tensor(seen), token_type_ids=torch.tensor((ids == 36).astype(np.int64)))
    with torch.no_grad():
        return model(torch.tensor(ids), **more).logits.numpy()


def ours(folder: Path) -> None:
    """Our logits with PEFT's adapters; ours, and their logits."""
    import jax

    from lm.pretrained import load
    from lm.pretrained.peft_save import adapter_of, write_adapter
    from lm.pretrained.rows import flatten
    from lm.tune.lora import DoRA, LoRA
    from lm.tune.pretrain import Pretrain

    for name, (_, _, value) in CASES.items():
        at = place(folder, name)
        ids, images = pixels(name)
        np.save(at / "read.npy", load(at / "base", adapter=at / "theirs").logits(ids, images=images))
        if value is None:
            continue
        model, dora = load(at / "base"), value.get("dora")
        kind = DoRA if dora else LoRA
        lora = kind(rank=4, alpha=6.0, **{k: v for k, v in value.items() if k != "dora"})
        learner = lora.wrap(Pretrain().build(model.model))
        params, frozen = learner.begin(model.params, jax.random.key(0), {})
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        params = treedef.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
        moving = {path: np.asarray(x) for path, x in flatten(params).items()}
        write_adapter(at / "ours", *adapter_of(model.config, lora, moving, str(at / "base")))
        read = model.inputs(ids, images=images)
        np.save(at / "ours.npy", model.model(learner.join(params, frozen["base"]), read))


def check(folder: Path) -> int:
    """The table; 1 where a line differs."""
    import peft
    import transformers

    rows: dict[str, list[float | None]] = {}
    for name, (_, _, value) in CASES.items():
        at = place(folder, name)
        rows[name] = [apart(np.load(at / "read.npy"), np.load(at / "theirs.npy")), None]
        if value is not None:
            base = transformers.AutoModelForCausalLM.from_pretrained(at / "base").float()
            model = peft.PeftModel.from_pretrained(base, at / "ours").eval()
            rows[name][1] = apart(logits(name, model), np.load(at / "ours.npy"))
    for name, row in rows.items():
        print(f"{name:18}" + "".join(f"{'' if x is None else f'{x:.1e}':>12}" for x in row))
    print(f"PEFT {peft.__version__}, transformers {transformers.__version__}: we read theirs; they read ours")
    (folder / "peft.json").write_text(json.dumps(rows))
    return int(any(x is not None and not x < LIMIT for row in rows.values() for x in row))


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, of the standard deviation."""
    return float(np.abs(a - b).max() / b.std())


if __name__ == "__main__":
    verb, at = sys.argv[1], Path(sys.argv[2])
    sys.exit({"make": make, "ours": ours, "check": check}[verb](at))
