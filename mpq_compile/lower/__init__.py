"""Materialized graph → Relax → library."""
