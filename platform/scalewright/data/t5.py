"""T5's encoder (Raffel et al. 2020) as text encoder, as CogVideoX and others use it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scalewright.data import weights as weights_folder

MAX_TOKENS = 226  # CogVideoX's; a longer prompt is cut


class T5Encoder:
    """`T5EncoderModel` of transformers from a local folder.

    `weights`: a model's root with `text_encoder/` and `tokenizer/`, or one folder with both.
    Needs the encoders: `pip install -e ".[encoders]"`.
    """

    def __init__(self, weights: Path) -> None:
        folder = weights_folder.part(weights, "text_encoder")
        tokenizer = weights / "tokenizer" if (weights / "tokenizer").is_dir() else folder
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
            raise weights_folder.not_installed("transformers", error) from error
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        model = T5EncoderModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._digest = weights_folder.digest(*dict.fromkeys((folder, tokenizer)))

    @property
    def fingerprint(self) -> str:
        return f"t5({self._digest})"

    @property
    def dim(self) -> int:
        return int(self._model.config.d_model)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """One (S, D) float32 a prompt on the CPU, without padding; "" is the end token alone."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Tensor:
        # One at a time: padding would change nothing but the cost of a batch of mixed lengths.
        tokens = self._tokenizer(
            prompt, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        ids = tokens.input_ids.to(self._device)
        return self._model(ids).last_hidden_state[0].float().cpu()
