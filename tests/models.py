"""Models for tests: every part of them acts."""

import torch

from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, param_rules
from scalewright.model.shape import ModelConfig


def awake(config: ModelConfig, dtype: torch.dtype = torch.float64) -> MMDiT:
    """A model whose zero-initialised parts have been given values."""
    model = meta_model(config)
    materialise(model, param_rules(config), seed=0, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)
