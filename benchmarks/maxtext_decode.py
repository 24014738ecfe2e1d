"""MaxText's step of decoding, compiled for a topology without a chip, as its engine compiles it ahead of time.

    DECOUPLE_GCLOUD=TRUE PYTHONPATH=maxtext/src python benchmarks/maxtext_decode.py v5e:2x4 8 PROGRAM.hlo \\
        model_name=llama3-8b per_device_batch_size=4 max_prefill_predict_length=1024 max_target_length=2048 ...

runs in an environment of MaxText's; arguments after the file are fields of its config, and config=FILE is another base
than inference.yml. `python -m benchmarks.plans --read PROGRAM.hlo v5e:2x4` then says what the program holds. Nothing is
allocated: `MaxEngine.aot_compile` takes loaded parameters, so what it does with their shapes is done here.
"""

import os
import sys
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def main(topology: str, chips: int, file: str, settings: list[str]) -> None:
    """Compile `MaxEngine.generate` for the topology, and write its program and memory."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from maxtext.configs import pyconfig
    from maxtext.inference.maxengine import maxengine
    from maxtext.utils import maxtext_utils, sharding

    fixed = ["skip_jax_distributed_system=true", "enable_checkpointing=false", "log_config=false"]
    base = os.path.join(os.path.dirname(pyconfig.__file__), "inference", "inference.yml")
    config_file = next((s.partition("=")[2] for s in settings if s.startswith("config=")), base)
    others = [s for s in settings if not s.startswith("config=")]
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=(2, 2, 1)
    ).devices
    assert len(devices) == chips, (len(devices), chips)
    jax.devices = lambda *_: devices  # the config counts them
    config = pyconfig.initialize(["", config_file, *fixed, *others])
    engine = maxengine.MaxEngine(config, devices=devices)
    # JetStream's, which is a tree of these arrays
    maxengine.engine_api.ResultTokens = lambda data, log_prob, **_: (data, log_prob)

    def placed(tree: Any, homes: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, homes)

    _, params, cache, rest = maxengine.nnx.split(engine.model_ar, maxengine.nnx.Param, maxengine.nnx.Cache, ...)
    with maxengine.nn_partitioning.axis_rules(config.logical_axis_rules):
        params = placed(params, sharding.nnx_construct_named_sharding(params, engine._mesh))
    annotations = maxtext_utils.get_kv_cache_annotations_nnx(engine.model_ar, config, engine._mesh)
    engine.kv_cache_shardings = jax.tree.map(lambda s: jax.sharding.NamedSharding(engine._mesh, s), annotations)
    engine._nnx_rest_state = jax.tree.map(_concrete, rest)
    rows = int(config.per_device_batch_size * engine._mesh.size)
    whole = jax.sharding.NamedSharding(engine._mesh, jax.sharding.PartitionSpec())
    one = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=whole)
    state = {
        "logits": jax.ShapeDtypeStruct((rows, 1, config.vocab_size), jnp.float32, sharding=whole),
        "cache": placed(maxengine.nnx.to_pure_dict(cache), engine.kv_cache_shardings),
        **dict.fromkeys(("next_pos", "generated_tokens", "tokens"), one),
        "token_logp": jax.ShapeDtypeStruct((rows, 1), jnp.float32, sharding=whole),
    }
    rng = jax.ShapeDtypeStruct([2], jnp.uint32)
    compiled, *_ = engine._compile_generate_and_get_layouts(params, state, rng)
    with open(file, "w") as out:
        out.write(compiled.as_text())
    print(compiled.memory_analysis())


def _concrete(x: Any) -> Any:
    """A value in place of a shape, of the generators that decoding does not draw from."""
    import jax
    import jax.numpy as jnp

    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(x.shape, x.dtype)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
