"""The transformer: one model whose parts are values.

Letters, in every einsum, docstring and reshape:

    B  batch             T  query length      S  key length       D  model width
    N  query heads       K  kv heads          G  = N / K          H  head size
    F  feed-forward      V  vocabulary        L  layers           E  experts

and Hv, the size of a head's values, where it is another than H.

Their long forms are the logical axes of lm/sharding/rules.py: batch, seq, embed, heads, kv_heads, head_dim, mlp, vocab,
layers.
"""
