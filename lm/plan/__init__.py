"""A plan: what a training step would cost on chips that are not here, from the chips' own compiler."""
