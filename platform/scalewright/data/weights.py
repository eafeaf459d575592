"""Local folders of encoder weights: find them, and name them by their content."""

import hashlib
from pathlib import Path

from scalewright.errors import ConfigError

SAMPLES = 16
SAMPLE_BYTES = 64 * 1024


def part(weights: Path, name: str) -> Path:
    """`weights/name` where `weights` is a whole model's folder, else `weights` itself.

    `ConfigError` when there is no config.json, so when it is no folder of weights.
    """
    folder = weights / name if (weights / name).is_dir() else weights
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder}: no config.json; give the folder of a downloaded model that has "
            f"{name}/config.json, or that folder itself"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder}: no *.safetensors; pickled weights are not read, convert them first"
        )
    return folder


def digest(*folders: Path) -> str:
    """Twelve hex digits over the files of `folders`: names, sizes and content.

    Of large files, 16 evenly spaced samples of 64 KiB stand for the whole: fine-tuning changes
    every tensor a little, and 10 GB should not be read to learn a name.
    """
    state = hashlib.sha256()
    for folder in folders:
        for path in sorted(file for file in folder.iterdir() if _counts(file)):
            size = path.stat().st_size
            state.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in _sample_starts(size):
                    file.seek(start)
                    state.update(file.read(SAMPLE_BYTES))
    return state.hexdigest()[:12]


def _counts(path: Path) -> bool:
    return path.suffix in {".json", ".safetensors", ".model", ".txt"} and path.is_file()


def _sample_starts(size: int) -> list[int]:
    if size <= SAMPLES * SAMPLE_BYTES:
        return list(range(0, size, SAMPLE_BYTES))
    return [(size - SAMPLE_BYTES) * index // (SAMPLES - 1) for index in range(SAMPLES)]


def not_installed(package: str, error: Exception) -> ConfigError:
    """The error to raise when `package` cannot be imported: why, and how to install it."""
    return ConfigError(
        f"{package} cannot be imported ({error}); install the encoders with: "
        f'pip install -e ".[encoders]"'
    )
