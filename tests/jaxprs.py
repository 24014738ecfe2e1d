"""What a function computes, as text: for a look at whether it changes, without the seconds that lowering takes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

UNSEEN = {"name", "policy", "prevent_cse", "differentiated", "bwd", "fwd_jaxpr_thunk", "jvp_jaxpr_fun", "out_trees"}


def program_text(f: Callable[..., Any], *args: Any) -> str:
    """What `f` computes of `args`: its operations, of those whose result is used, and its constants."""
    closed = jax.jit(f).trace(*args).jaxpr
    used, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return "\n".join(operations(used, closed.consts))


def operations(jaxpr: Jaxpr, consts: Sequence[Any] = ()) -> Iterator[str]:
    """A line an operation, variables by number; UNSEEN are names, and what an operation says of its gradient alone."""
    numbers: dict[Any, int] = {}

    def said(x: Any) -> str:
        if isinstance(x, Literal):
            return f"{x.aval} {np.asarray(x.val).tobytes().hex()}"
        return f"{numbers.setdefault(x, len(numbers))}: {x.aval}"

    yield from (hashlib.sha256(np.asarray(const).tobytes()).hexdigest() for const in consts)
    yield f"of {', '.join(map(said, [*jaxpr.constvars, *jaxpr.invars]))}"
    for eqn in jaxpr.eqns:
        yield f"{', '.join(map(said, eqn.outvars))} = {eqn.primitive} of {', '.join(map(said, eqn.invars))}"
        for name in sorted(set(eqn.params) - UNSEEN):
            param = eqn.params[name]
            for part in param if isinstance(param, tuple) else (param,):
                if isinstance(part, ClosedJaxpr):
                    yield from operations(part.jaxpr, part.consts)
                elif isinstance(part, Jaxpr):
                    yield from operations(part)
                else:
                    yield f"{name}={part}"
    yield f"gives {', '.join(map(said, jaxpr.outvars))}"
