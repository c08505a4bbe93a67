"""Compiled kernels for the CPU (numba)."""
