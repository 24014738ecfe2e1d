"""A small experiment that holds every kind of value, and what each field of them is changed to."""

import dataclasses
import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lm import experiment
from lm.data.captions import Captions
from lm.data.denoise import UL2, SpanCorruption
from lm.data.mixture import Breakpoint, Data, Mixture
from lm.data.objective import CausalLM, PrefixLM
from lm.data.pack import Chunk, Pack
from lm.data.records import Jsonl, Parquet
from lm.data.repeats import Repeats
from lm.data.shapes import Shapes
from lm.data.source import TextFile, TextFolder
from lm.experiment import Experiment
from lm.machine.tracking import WandB
from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig, Vision
from lm.model.delta import GatedDeltaNet
from lm.model.experts import Experts
from lm.model.families import siglip
from lm.model.gated import GatedAttention
from lm.model.latent import LatentAttention
from lm.model.merged import MergedAttention
from lm.model.normed_experts import NormedExperts
from lm.model.output import Output
from lm.model.parametrisation import MuP
from lm.model.parts import FeedForward, Norm
from lm.model.positions import Relative, RelativeByLayer
from lm.model.scaling import Dynamic, Linear, Llama3, LongRoPE, YaRN
from lm.model.shared_experts import SharedExperts
from lm.model.shared_kv import NormedValues, SharedAttention
from lm.text.image_tokens import ImageTokens
from lm.text.tokenizer import Bytes, ByteTokenizer, CharacterTokenizer, SentencePieceSpec, TokenizerFile
from lm.train.optim import Adafactor, AdamW
from lm.train.schedule import WSD, Cosine, InverseSquareRoot
from lm.tune.distill import Distill
from lm.tune.divergence import ReverseKL
from lm.tune.lora import LoRA
from lm.tune.pretrain import Pretrain
from lm.tune.trains import Freeze, Only


@dataclass(frozen=True)
class Anything(CausalLM):
    """Asks for the next token of any model, also of one that sees it."""

    def check(self, model: Any) -> None:
        pass


# ---------------------------------------------------------------- a small experiment, and what else is to be looked at


@cache
def folder() -> Path:
    """Texts, as a folder and as records."""
    import pyarrow
    from pyarrow import parquet

    root = Path(os.environ["LM_CACHE"]) / "knobs"
    code = "".join(path.read_text() for path in sorted((Path(experiment.__file__).parent / "model").glob("*.py")))
    every = [code[i : i + 150] for i in range(0, 18_000, 150)]
    for name, texts in (("some", every), ("more", every[::2])):
        (root / name).mkdir(parents=True)
        for i, text in enumerate(texts):
            (root / name / f"{i}.{'txt' if i % 2 else 'md'}").write_text(text)
        (root / f"{name}.txt").write_text("".join(texts))
        rows = [{"text": text, "other": text.upper()} for text in texts]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / f"{name}.parquet")
    ByteTokenizer().save(root / "bytes")
    CharacterTokenizer(code + code.upper()).save(root / "characters")
    return root


@cache
def base() -> Experiment:
    root = folder()
    return Experiment(
        name="base",
        model=ModelConfig(
            vocab=258,
            layers=2,
            width=8,
            context=16,
            attention=Attention(heads=2, head_dim=8, kv_heads=1, bias=True),
            ffn=FeedForward(12, "silu", gated=True),
        ),
        data=Data(
            Mixture(
                {"some": TextFolder(str(root / "some"), heldout=0.3), "other": TextFile(str(root / "more.txt"))},
                {"some": 0.5, "other": 0.5},
                (Breakpoint(4, {"some": 0.01, "other": 1.0}),),
            ),
            Bytes(),
            Pack(),
        ),
        method=Pretrain(objective=Anything()),
        optimizer=AdamW(schedule=Cosine(warmup_steps=2)),
        compute=Compute("float32", "float32", "plain", block=4, flat="no", unroll=1, loss_chunk=0),
        batch_tokens=64,
        steps=12,
    )


@cache
def samples() -> dict[str, Any]:
    """Values of the classes that have no defaults, or whose defaults say too little for so small a model."""
    root = folder()
    return {
        "FeedForward": FeedForward(12, "silu", gated=True),
        "LatentAttention": LatentAttention(2, 4, 2, 5, kv_lora_rank=6, q_lora_rank=3),
        "Experts": Experts(12, "silu", gated=True, experts=3, top_k=2),
        "SharedExperts": SharedExperts(12, "silu", gated=True, experts=4, top_k=1, shared=6, groups=2),
        "NormedExperts": NormedExperts(12, "silu", gated=True, experts=4, top_k=1, shared=6, groups=2),
        "GatedAttention": GatedAttention(2, 8, 1, bias=True),
        "NormedValues": NormedValues(2, 8, 1, bias=True),
        "SharedAttention": SharedAttention(2, 8, kv_heads=1),
        "MergedAttention": MergedAttention(2, 8, 1, bias=True),
        "GatedDeltaNet": GatedDeltaNet(1, 2, key_dim=4, value_dim=6, chunk=4),
        "Linear": Linear(2.0),
        "Dynamic": Dynamic(2.0, original_context=8),
        "Llama3": Llama3(4.0, original_context=64),
        "LongRoPE": LongRoPE((1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0, 8.0), original_context=8),
        "YaRN": YaRN(4.0, original_context=64, beta_fast=8.0, truncate=False),
        "Relative": Relative(buckets=8, max_distance=16),
        "RelativeByLayer": RelativeByLayer(buckets=8, max_distance=16),
        "MuP": MuP(4, 6, 1, 1, 4),
        "Adafactor": Adafactor(min_side=4, weight_decay=0.1),
        "WSD": WSD(warmup_steps=2),
        "InverseSquareRoot": InverseSquareRoot(warmup_steps=2),
        "SpanCorruption": SpanCorruption(sentinels=8),
        "UL2": UL2(sentinels=16),
        "TextFile": TextFile(str(root / "some.txt")),
        "TextFolder": TextFolder(str(root / "some"), heldout=0.3),
        "Jsonl": Jsonl(str(root / "some.jsonl"), heldout=0.3),
        "Parquet": Parquet(str(root / "some.parquet"), heldout=0.3),
        "Repeats": Repeats(texts=100, heldout=20),
        "TokenizerFile": TokenizerFile(str(root / "bytes")),
        "Vision": Vision(siglip(layers=1, width=8, heads=2, mlp=8, patches=16), 8, 2, 255, pool=2),
        "ImageTokens": ImageTokens(255, 4),
        "Captions": Captions(Shapes(images=100, size=8), ImageTokens(255, 4), size=8),
        "Only": Only("query"),
        "Freeze": Freeze("query"),
        "Distill": Distill(None, base().model),
        "SentencePieceSpec": SentencePieceSpec(400, train_bytes=20_000),
    }


# what has to hold for a class to be of any effect
CONTEXT: dict[str, dict[str, Any]] = {"MaskedLM": dict(model=dict(causal=False)), "UL2": dict(model=dict(context=32))}
PAIRS = dict(model=dict(causal=False, token_types=2, output=Output(next_sentence=True)))


@cache
def changes() -> dict[str, Any]:
    """Class.field -> what it is changed to, where its type does not tell."""
    root = folder()
    some, other = base().data.mixture.sources.values()
    return {
        "Experiment.name": "other",
        "Experiment.prompts": ("x",),
        "Experiment.embedding": "vectors.npy",
        "Experiment.mesh": {"data": 2},
        "Experiment.trackers": (WandB(),),
        "Experiment.method": Pretrain(PrefixLM()),
        **dict.fromkeys(("Pretrain.objective", "Distill.objective"), PrefixLM()),
        "Distill.teacher_model": replace(base().model, width=12),
        "Distill.divergence": ReverseKL(),
        "Experiment.batch_tokens": 128,
        "Experiment.trains": LoRA(rank=2),
        "LoRA.where": "query|mlp",
        "LoRA.base": "nf4",
        "LoRA.full": "head/.*",
        **dict.fromkeys(("Only.where", "Freeze.where"), "mlp"),
        **dict.fromkeys(
            ("ModelConfig.width", "Attention.head_dim", "GatedAttention.head_dim", "NormedValues.head_dim"), 16
        ),
        "MergedAttention.head_dim": 16,
        "MergedAttention.heads": 4,
        "ModelConfig.context": 32,
        "ModelConfig.pattern": (LayerKind(), LayerKind(window=3)),
        **dict.fromkeys(
            ("Attention.heads", "GatedAttention.heads", "NormedValues.heads", "LatentAttention.qk_rope_head_dim"), 4
        ),
        "GatedDeltaNet.key_heads": 2,
        "GatedDeltaNet.value_heads": 4,
        "GatedDeltaNet.chunk": 8,
        **dict.fromkeys(("FeedForward.activation", "PerLayerEmbedding.activation"), "relu"),
        "Output.transform": "gelu",
        **dict.fromkeys(("Compute.dtype", "Compute.matmul", "Compute.gradients"), "bfloat16"),
        "Compute.attention": "blocked",
        **dict.fromkeys(("Compute.block", "Experiment.seq_len", "Relative.max_distance"), 8),
        "Compute.flat": "yes",
        **dict.fromkeys(("LongRoPE.short_factor", "LongRoPE.long_factor"), (1.0, 1.25, 1.5, 2.0)),
        "PartialRotary.fraction": 0.25,
        "SharedExperts.experts": 8,
        "SharedExperts.groups": 4,
        "SharedExperts.scores": "sigmoid",
        "ScaledSandwich.ffn_norm": Norm(),
        "Compute.backend": "gpu",
        "Compute.remat": "full",
        "Compute.loss_chunk": 8,
        "Adafactor.min_side": 100,
        "WSD.shape": "linear",
        "WSD.decay_fraction": 0.5,
        "MaskedLM.rate": 0.5,
        "SpanCorruption.rate": 0.5,
        "SpanCorruption.mean_length": 1.0,
        "Mixture.sources": {"some": other, "other": some},
        "Mixture.weights": {"some": 0.9, "other": 0.1},
        "Mixture.breakpoints": (),
        "Breakpoint.step": 8,
        "Breakpoint.weights": {"some": 1.0, "other": 0.01},
        "LayerKind.ffn": FeedForward(20),
        "Sampling.logit_bias": ((1, 2.0),),
        "Sampling.vocab_size": 30,
        "LayerKind.mixer": Attention(heads=4, head_dim=8),
        "ModelConfig.first_layers": (LayerKind(window=3),),
        "ModelConfig.encoder": replace(base().model, causal=False, width=12),
        "Data.tokenizer": samples()["SentencePieceSpec"],
        "Data.packing": Chunk(),
        **{f"{name}.heldout": 0.6 for name in ("TextFile", "TextFolder", "Jsonl", "Parquet")},
        "TextFile.path": str(root / "more.txt"),
        "TextFolder.path": str(root / "more"),
        "TextFolder.pattern": "**/*.md",
        "Jsonl.path": str(root / "more.jsonl"),
        "Jsonl.field": "other",
        "Parquet.path": str(root / "more.parquet"),
        "Parquet.field": "other",
        "TokenizerFile.path": str(root / "characters"),
        "SentencePieceSpec.model_type": "unigram",
        "SentencePieceSpec.indentations": 0,
        "SentencePieceSpec.train_bytes": 9_000,
        "SentencePieceSpec.vocab_size": 380,
    }


CHANGED_IN: dict[str, dict[str, Any]] = {  # Class.field -> what has to hold for that field alone
    "ModelConfig.encoder_layers": dict(method=dict(objective=SpanCorruption(sentinels=8))),
    "ModelConfig.encoder": dict(method=dict(objective=SpanCorruption(sentinels=8))),
    "MaskedLM.next_sentence": PAIRS,
    "Compute.block": dict(compute=dict(attention="blocked", block=4)),
    "Chunk.across_documents": dict(data=dict(mixture=dict(breakpoints=()))),  # or few rows are of short documents
}
CAPTIONS = "tests/data/test_captions.py::"
MERGED = "tests/model/test_merged.py::"
SHARED_KV = "tests/model/test_shared_kv.py::"
VISION = {  # Class.field -> the test that turns it
    **dict.fromkeys(
        ("ModelConfig.vision", *(f"Vision.{field.name}" for field in dataclasses.fields(Vision))),
        "tests/model/test_vision.py::test_every_field_changes_the_soft_tokens",
    ),
    **{f"ImageTokens.{f.name}": f"{CAPTIONS}test_the_answer_carries_loss" for f in dataclasses.fields(ImageTokens)},
    **{f"Captions.{f.name}": f"{CAPTIONS}test_every_field_does_something" for f in dataclasses.fields(Captions)},
    **{f"Shapes.{f.name}": f"{CAPTIONS}test_every_field_does_something" for f in dataclasses.fields(Shapes)},
    **{
        f"SharedAttention.{f.name}": f"{SHARED_KV}test_a_layer_reads_what_its_source_reads"
        for f in dataclasses.fields(SharedAttention)
    },
    "ModelConfig.one_embedding": f"{MERGED}test_without_an_encoder_it_is_attention",
    **dict.fromkeys(("LayerKind.window_after", "Rewired.window_after"), f"{MERGED}test_a_window_may_be_longer_behind"),
}
