"""The model that the course looks into (docs/course): a Llama of 431,000 parameters on Python's standard library.

    lm train experiments.course.base

It is that of experiments/ablations/small.py, for four times as many steps.
"""

from experiments.ablations.small import experiment as small

experiment = small.replace(
    name="course",
    steps=400,
    eval_every_steps=100,
    checkpoint_every_steps=200,
    prompts=("def read_lines(path):\n", "The with statement "),
    sample_tokens=64,
)
