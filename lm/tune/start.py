"""What a run starts from, as a value of the experiment."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    """The model at `path`: a run's folder, a Hugging Face directory, or a GGUF file.

    Its parameters are those that training starts from, and its tokenizer is the run's. The experiment's model is to be
    the same, but for context and dropout: `read_config(path)` of lm/pretrained gives it. Where it is a model of texts
    and the experiment's one of scores, `scorer(read_config(path))`, the output of scores is drawn from the seed."""

    path: str
