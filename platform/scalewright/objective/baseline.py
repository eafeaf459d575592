"""What can be predicted without the text: the loss a text-to-video model has to beat."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scalewright.data.sample import Sample
from scalewright.model.packed import patchify
from scalewright.objective.flow import FlowConfig, shifted, stratified_levels

_STRATA = 64


def linear_text_free_loss(
    samples: Sequence[Sample], flow: FlowConfig, patch: tuple[int, int, int]
) -> float:
    """Loss of the best linear prediction of the velocity from the noised patch, without text.

    For a patch with covariance eigenvalues s the residual of v = e - x0 given x_t is
    s / ((1 - t)²·s + t²) (the Wiener filter). First and later latent frames have their own mean
    and covariance; losses are averaged over the training distribution of noise levels, clip by
    clip, weighted by elements like the training loss.
    """
    first = _spectrum([patchify(s.latent[:1], patch) for s in samples])
    videos = [patchify(s.latent[1:], patch) for s in samples if len(s.latent) > 1]
    later = _spectrum(videos) if videos else first
    levels = stratified_levels(flow, _STRATA)
    total, elements = 0.0, 0
    for sample in samples:
        frames, size = len(sample.latent), sample.latent.numel()
        tokens = size // len(first)
        shape = torch.tensor([shifted(t, flow, tokens) for t in levels], dtype=torch.float64)
        loss = (_residual(first, shape) + (frames - 1) * _residual(later, shape)) / frames
        total, elements = total + loss * size, elements + size
    return total / elements


def _spectrum(tokens: Sequence[Tensor]) -> Tensor:
    return torch.linalg.eigvalsh(torch.cat(list(tokens)).double().T.cov(correction=0)).clamp(min=0)


def _residual(spectrum: Tensor, t: Tensor) -> float:
    residual = spectrum / ((1 - t[:, None]) ** 2 * spectrum + t[:, None] ** 2)
    return residual.mean().item()
