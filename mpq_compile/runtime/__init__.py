"""Running artifacts: no torch needed. ``TVM_NUM_THREADS`` is set before TVM is imported."""
