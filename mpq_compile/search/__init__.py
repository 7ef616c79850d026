"""Bits learned by gradient on a small data set, and the policies that come of it."""
