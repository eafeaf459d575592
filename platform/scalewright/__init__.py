"""Scalewright: elastic training of picture and video diffusion transformers on Ray."""

__version__ = "0.1.0"
