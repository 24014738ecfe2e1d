"""The `lm` command: argv becomes one call into the library. Each verb is one file, with `add` (its arguments) and
`run`.

JAX is imported inside `run` only, so that help and mistakes are answered at once.
"""
