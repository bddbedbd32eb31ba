"""The base models: recipes, data, optimizers, averaging, quantisation, export."""
