"""Layers and what they are made of: convolution and its lowerings, norms, pooling, activations, initial parameters."""
