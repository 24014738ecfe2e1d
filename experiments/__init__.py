"""Experiments: one page each, which builds one value. `lm train experiments.quickstart` runs a page's `experiment`."""
