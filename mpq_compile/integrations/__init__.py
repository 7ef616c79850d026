"""Where users already are: ``torch.compile`` and other tools that call this package."""
