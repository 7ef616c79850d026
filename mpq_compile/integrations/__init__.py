"""Where users already are: what connects this package to other frameworks and file formats."""
