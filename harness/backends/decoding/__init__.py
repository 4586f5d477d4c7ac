"""Greedy batched decoding on PyTorch: the decoder, its static cache, and its kernels."""
