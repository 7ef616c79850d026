"""Training of a planned network: learned step sizes, straight-through gradients, a teacher."""
