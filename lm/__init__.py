"""Language models in JAX: text, model, data, training, decoding, and the experiments that join them."""
