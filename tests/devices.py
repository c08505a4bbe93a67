"""The devices that tests run on: the CPU, and a GPU where there is one."""

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.device_count() else [])]
"""Counted without starting CUDA, so that a process may still hide the GPU from itself."""
