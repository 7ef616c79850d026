"""Calibration data from what users have: arrays, files, folders of images, data sets."""
