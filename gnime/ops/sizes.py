"""Sizes that several formulations share."""

CACHED = 1 << 20  # numbers that stay in a core's cache
THIN = 32  # a convolution with fewer output channels cannot fill the SIMD lanes
