"""Quantization: observers, fake quantization, bit packing and the exact reference operators."""
