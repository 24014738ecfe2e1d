"""Our training step beside its peers', on one machine, taken in turn. Not part of the tests; see README.md here."""
