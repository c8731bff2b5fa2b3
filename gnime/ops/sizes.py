"""Sizes that several formulations share."""

CACHED = 1 << 20  # numbers that fit a core's cache
THIN = 32  # output channels; with fewer, a convolution does not fill the SIMD lanes
