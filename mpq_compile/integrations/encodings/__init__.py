"""Encodings: bits, scales and zero points of a quantized network, as JSON for other tools."""
