"""Fitting LEVI (Roh et al., ICML 2024), evaluating it and exporting it to a model repository."""
