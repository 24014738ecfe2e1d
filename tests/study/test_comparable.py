"""Arms are compared by a measure that they have in common, or not at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm.data.captions import Captions
from lm.data.masked import MaskedLM
from lm.data.mixture import Mixture
from lm.data.objective import CausalLM, PrefixLM
from lm.data.pack import Pack
from lm.data.preferences import Preferences, UnpairedPreferences
from lm.data.shapes import Shapes
from lm.data.source import TextFolder
from lm.data.talks import StdlibPairs
from lm.experiment import Evaluation, Experiment
from lm.model.config import Vision
from lm.model.families import siglip
from lm.study.ablation import Ablation
from lm.study.space import Choice, Integer, LogUniform
from lm.study.sweep import Sweep
from lm.text.image_tokens import ImageTokens
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec
from lm.tune.completion_eval import CompletionEval
from lm.tune.dpo import DPO
from lm.tune.kto import KTO
from lm.tune.pretrain import Pretrain
from lm.tune.sft import SFT
from lm.tune.simpo import SimPO
from tests.study.results import BASE
from tests.tune.sums import Digits, summing

OTHER = Characters() if isinstance(BASE.data.tokenizer, Bytes) else Bytes()
TOKENIZERS = {"one": {}, "two": dict(data=dict(tokenizer=OTHER))}
OBJECTIVES = {"one": {}, "two": dict(method=dict(objective=PrefixLM()))}


def test_across_tokenizers_bits_per_byte_are_chosen() -> None:
    whole = replace(BASE, data=replace(BASE.data, tokenizer=OTHER))
    for arms in (TOKENIZERS, {"two": whole}, {"two": dict(data=whole.data)}, {"two": dict(data=dict(tokenizer=OTHER))}):
        assert Ablation(BASE, arms, declared=("data",)).measure == "bits_per_byte"
    sized = replace(BASE, data=replace(BASE.data, tokenizer=SentencePieceSpec()))
    for space in ({"data.tokenizer": Choice(Bytes(), Characters())}, {"data.tokenizer.vocab_size": Integer(300, 400)}):
        assert Sweep(sized, space).measure == "bits_per_byte"


def test_the_same_questions_beside_other_images_are_compared() -> None:
    """And other questions are not."""
    fields_of_vision = dict(image_tokens=ImageTokens(255, 4), size=8)

    def asked(**fields: Any) -> dict[str, Any]:
        return dict(
            data=dict(mixture=dict(sources={"a": Captions(Shapes(images=100, size=8, **fields), **fields_of_vision)}))
        )

    vision = Vision(siglip(layers=1, width=8, heads=2, mlp=8, patches=16), 8, 2, 255, pool=2)
    model = replace(BASE.model, vocab=258, vision=vision)
    data = replace(BASE.data, tokenizer=Bytes(), mixture=Mixture(asked()["data"]["mixture"]["sources"], {"a": 1.0}))
    base = replace(BASE, model=model, data=data, method=SFT(), prompts=(), evaluations={})
    assert Ablation(base, {"own": {}, "none": asked(shown="none")}).measure == "loss"
    with pytest.raises(ValueError, match="differ in data.mixture.sources .a., so their losses are of different texts"):
        Ablation(base, {"own": {}, "other": asked(question="side")})


def test_within_one_tokenizer_it_is_the_loss_or_what_is_asked_for() -> None:
    rates = {"optimizer.learning_rate": LogUniform(1e-4, 1e-2)}
    for study in (Ablation(BASE, {"a": dict(steps=3)}), Ablation(BASE, {"a": {}, "b": BASE}), Sweep(BASE, rates)):
        assert study.measure == "loss" == replace(study).measure
    assert Ablation(BASE, {"a": {}}, measure="sums/accuracy").measure == "sums/accuracy"
    assert Ablation(BASE, TOKENIZERS, measure="sums/bits_per_byte").measure == "sums/bits_per_byte"


@pytest.mark.parametrize("measure", ["loss", "sums/loss", "sums/perplexity", "sums/accuracy"])
def test_a_measure_of_tokens_is_refused_across_tokenizers(measure: str) -> None:
    with pytest.raises(ValueError, match=f"arms differ in data.tokenizer, and measure='{measure}' .*: take measure="):
        Ablation(BASE, TOKENIZERS, measure=measure)
    with pytest.raises(ValueError, match="arms differ in data.tokenizer, and measure="):
        Sweep(BASE, {"data.tokenizer": Choice(Bytes(), Characters())}, measure=measure)


def test_across_objectives_an_evaluation_is_asked_for() -> None:
    with pytest.raises(ValueError, match="arms differ in method.objective, so their losses are of different questions"):
        Ablation(BASE, OBJECTIVES)
    with pytest.raises(ValueError, match="so their sums/loss are of different questions"):
        Ablation(BASE, {"two": dict(method=Pretrain(PrefixLM()))}, measure="sums/loss")
    asked: Experiment = replace(BASE, evaluations={"asked": Evaluation(objective=CausalLM()), "longer": Evaluation(1)})
    assert Ablation(asked, OBJECTIVES, measure="asked/bits_per_byte").measure == "asked/bits_per_byte"
    with pytest.raises(ValueError, match="so their longer/loss are of different questions"):
        Ablation(asked, OBJECTIVES, measure="longer/loss")


def test_across_methods_and_what_they_read_one_method_is_asked() -> None:
    """DPO by pairs and KTO by completions are compared by the pairs' accuracy."""
    pairs, completions = Preferences(StdlibPairs()), {"answers": UnpairedPreferences(StdlibPairs())}
    data = replace(BASE.data, mixture=Mixture({"answers": pairs}, {"answers": 1.0}), packing=Pack())
    asked = Evaluation(method=SimPO(), sources={"pairs": pairs})
    base = replace(BASE, method=DPO(), data=data, evaluations={"asked": asked})
    arms = {"dpo": {}, "kto": dict(method=KTO(), data=dict(mixture=Mixture(completions, {"answers": 1.0})))}
    assert Ablation(base, arms, measure="asked/pairs/accuracy").measure == "asked/pairs/accuracy"
    with pytest.raises(ValueError, match="arms differ in method.objective"):
        Ablation(base, arms, measure="answers/accuracy")


def test_texts_are_compared_with_themselves() -> None:
    mixture = BASE.data.mixture
    more = {"more": dict(data=dict(mixture=dict(sources={"new": TextFolder("new")}, weights={"new": 0.1})))}
    other = {"other": dict(data=dict(mixture=dict(sources={"sums": dict(heldout=0.2)})))}
    for arms, name in ((more, "new"), (other, "sums"), ({**more, **other}, "new, sums")):
        with pytest.raises(
            ValueError, match=f"arms differ in data.mixture.sources \\({name}\\), so their losses are of"
        ):
            Ablation(BASE, arms)
    with pytest.raises(ValueError, match="are of different texts: take one of a source that all have, as 'words/loss'"):
        Ablation(BASE, other, measure="sums/accuracy")
    assert Ablation(BASE, other, measure="words/accuracy").measure == "words/accuracy"
    weights = {"weights": dict(data=dict(mixture=dict(weights={"sums": 0.0})))}
    assert Ablation(BASE, weights).measure == "loss"
    with pytest.raises(ValueError, match="are of different texts"):
        Sweep(BASE, {"data.mixture.sources.sums.heldout": Choice(0.1, 0.2)})
    turned = replace(mixture, sources=dict(reversed(mixture.sources.items())))
    arm = replace(BASE, name="turned", data=replace(BASE.data, mixture=turned))
    with pytest.raises(ValueError, match="arm 'turned': its sources are in another order, words, sums"):
        assert Ablation(BASE, {"turned": arm}).resolved


def test_where_no_measure_compares_tokenizers_the_study_refuses() -> None:
    model = replace(BASE.model, causal=False)
    masked = replace(BASE, model=model, method=Pretrain(MaskedLM(next_sentence=False)))
    with pytest.raises(ValueError, match="MaskedLM has no measure that compares across them"):
        Ablation(masked, TOKENIZERS)


def test_what_is_made_of_completions_is_no_other_question() -> None:
    grpo = summing(Path("sums.jsonl"))
    arms = {"kl": dict(method=dict(beta=0.1)), "groups": dict(method=dict(group=8))}
    assert Ablation(grpo, arms, match="steps", measure="sums/ExactAnswer").measure == "sums/ExactAnswer"
    with pytest.raises(ValueError, match="arms differ in method.objective"):
        Ablation(grpo, {"longer": dict(method=dict(max_new_tokens=5))})


def test_a_method_with_sources_of_its_own_asks_all_arms_one_question() -> None:
    grpo = summing(Path("sums.jsonl"))
    judge = Evaluation(method=CompletionEval(rewards=(Digits(),), max_new_tokens=5), sources=grpo.data.mixture.sources)
    base = BASE.replace(evaluations=dict(judged=judge))
    arms = {"grpo": dict(method=grpo.method, data=grpo.data, seq_len=12, batch_tokens=32 * 12)}
    assert Ablation(base, arms, measure="judged/sums/Digits").measure == "judged/sums/Digits"
    with pytest.raises(ValueError, match="arms differ in method.objective"):
        Ablation(base, arms, measure="loss")
