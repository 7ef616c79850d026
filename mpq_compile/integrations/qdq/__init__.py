"""Materialized graph → QDQ ONNX: one table of rules, float operators between codes."""
