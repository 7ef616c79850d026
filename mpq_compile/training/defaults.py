"""How long and how fast, where nobody says: known to the command line without PyTorch."""

EPOCHS, BATCH_SIZE, RATE = 2, 8, 2e-3
