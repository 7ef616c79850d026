"""ONNX files → modules that capture traces like any other.

``source`` normalises a file to one opset, ``program`` makes a list of nodes and constants of it,
``constants`` evaluates what depends on constants alone, ``fixed`` takes out what the file
has quantized, ``linears`` gives linear layers the form that PyTorch has, ``naming`` finds module
paths for weights, and ``network`` runs what is left with the functions of ``operators``.
"""
