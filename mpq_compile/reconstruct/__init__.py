"""Better quantized weights than rounding alone gives, from calibration data."""
