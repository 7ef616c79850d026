"""FX rewrites, one a file; ``network.prepare`` composes the float ones."""
