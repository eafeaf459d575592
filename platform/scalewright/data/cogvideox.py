"""The causal 3-D VAE of CogVideoX (Yang et al. 2024) as a codec: 8x8 pixels, 4 frames."""

from pathlib import Path

import torch
from torch import Tensor

from scalewright.data import weights as weights_folder
from scalewright.data.codec import SPACE_STRIDE, TIME_STRIDE, check_frames, check_latent
from scalewright.errors import ConfigError


class CogVideoXCodec:
    """`AutoencoderKLCogVideoX` of diffusers from a local folder: a checkout's root or its `vae/`.

    Latents are the posterior's mode times the config's `scaling_factor`. Needs the encoders:
    `pip install -e ".[encoders]"`.
    """

    def __init__(self, weights: Path) -> None:
        folder = weights_folder.part(weights, "vae")
        try:
            from diffusers import AutoencoderKLCogVideoX
        except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
            raise weights_folder.not_installed("diffusers", error) from error
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        vae = AutoencoderKLCogVideoX.from_pretrained(
            folder,
            use_safetensors=True,
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,  # True needs accelerate, and the VAE is small
        )
        _check_geometry(folder, vae.config)
        self._vae = vae.to(self._device).eval().requires_grad_(False)
        self._digest = weights_folder.digest(folder)

    @property
    def fingerprint(self) -> str:
        return f"cogvideox({self._digest})"

    @property
    def latent_channels(self) -> int:
        return int(self._vae.config.latent_channels)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) float32 in [-1, 1] -> (T, C, H/8, W/8), on the frames' device."""
        check_frames(frames)
        clip = frames.to(self._device, torch.float32).transpose(0, 1)[None]  # (1, 3, F, H, W)
        latent = self._vae.encode(clip).latent_dist.mode() * self._vae.config.scaling_factor
        return latent[0].transpose(0, 1).contiguous().to(frames.device)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(T, C, H/8, W/8) -> (F, 3, H, W), on the latent's device."""
        check_latent(latent, self.latent_channels)
        clip = latent.to(self._device, torch.float32).transpose(0, 1)[None]  # (1, C, T, h, w)
        frames = self._vae.decode(clip / self._vae.config.scaling_factor).sample
        return frames[0].transpose(0, 1).contiguous().to(latent.device)


def _check_geometry(folder: Path, config: object) -> None:
    """The platform counts on 8x8 pixels and 4 frames; another VAE would give other shapes."""
    blocks = getattr(config, "block_out_channels", ())
    space, time = 2 ** (len(blocks) - 1), getattr(config, "temporal_compression_ratio", None)
    if (space, time) != (SPACE_STRIDE, TIME_STRIDE):
        raise ConfigError(
            f"{folder}: this VAE compresses {space}x in space and {time}x in time; "
            f"only {SPACE_STRIDE}x and {TIME_STRIDE}x are supported"
        )
