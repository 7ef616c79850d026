"""TensorIR generators: one operator a file, the tier a parameter object. Imports tvm."""
