"""What a run reads and how much a step eats: the `data` part of a config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from scalewright.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data lies and how much a step eats; fixed for the length of a run.

    `path`: a folder, or `s3://bucket/prefix`. `catalogue`: the URL of the database that holds the
    catalogue, where it is not the file in the folder.

    A pack closes on `pack_tokens`, the visual and text tokens that one worker holds in memory at
    once, and on `pack_flops`, what a pack may cost, where it is set; with `pack_frames` it closes
    on latent frames instead, whatever their size (25 is Kandinsky 4.0's rule). `packs_per_step` is
    shared out over the workers, however many there are.

    `buffers`: "aspect" fills packs with clips of one aspect ratio, "one" with any. `trim_frames`:
    latent frames that a clip may lose of its tail to fill a pack, at most a tenth of it or one.
    `balance_steps`: steps among which packs are exchanged so that all of a step cost the same.
    `mixture`: weights of collections; left out, every clip is seen once an epoch, and with weights
    every clip once in each round of its collection. `shuffle_clips`: see `data/shuffle.py`.

    `hot`: a folder that all workers share, such as on NFS, through which clips come from the store
    to RAM, so that each is fetched once for all of them; at most `hot_bytes` lie there, or what a
    step needs. `ram_bytes`: what one worker reads ahead, at most, beside the next step, and no more
    than `ahead_steps`: what small clips leave room for would be read for minutes at every start.
    `max_skip_share`: of the clips that one worker reads so many may be broken or gone, and ten
    always, unless it is 0; they are left out and listed. `audit`: list the clips of every step, in
    `consumed/` of the run's folder.

    `codec` and `text_encoder`: fingerprints that the folder must have been prepared with, as a
    plan pins those of its sweep; left out, any will do whose sizes fit the model. `assumed_clips`:
    sizes that a dry run takes for the clips where the folder is not there, such as "25x64x64+224"
    for 25 latent frames of 64 x 64 with 224 text tokens, all equally frequent.
    """

    path: str = "data/shapes"
    catalogue: str | None = None
    pack_tokens: int = 2048
    pack_frames: int | None = None
    pack_flops: float | None = None
    packs_per_step: int = 4
    buffers: Literal["aspect", "one"] = "aspect"
    trim_frames: int = 0
    balance_steps: int = 8
    mixture: Mapping[str, float] = field(default_factory=dict, hash=False)
    shuffle_clips: int = 65_536
    ram_bytes: int = 512 * 2**20
    ahead_steps: int = 128
    hot: str | None = None
    hot_bytes: int = 64 * 2**30
    max_skip_share: float = 0.001
    audit: bool = False
    codec: str | None = None
    text_encoder: str | None = None
    assumed_clips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("data.path is empty; give the folder that jobs/prepare.py wrote")
        for name in (
            "pack_tokens", "packs_per_step", "balance_steps", "shuffle_clips", "ram_bytes",
            "ahead_steps", "hot_bytes",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} = {getattr(self, name)}; it must be at least 1")
        for name in ("pack_frames", "pack_flops"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"data.{name} = {value}; it must be positive, or left out")
        if self.hot is not None and not self.hot.startswith("/"):
            raise ConfigError(
                f"data.hot = {self.hot!r} is a relative path, which is another place on every "
                "node; give the whole path"
            )
        if not 0 <= self.max_skip_share < 1:
            raise ConfigError(
                f"data.max_skip_share = {self.max_skip_share}; it must be at least 0 and below 1"
            )
        if self.trim_frames < 0:
            raise ConfigError(f"data.trim_frames = {self.trim_frames}; it must be at least 0")
        if bad := {name: weight for name, weight in self.mixture.items() if not weight > 0}:
            raise ConfigError(
                f"data.mixture = {bad}; weights are positive, and collections that are not to be "
                "seen are left out"
            )


def legal_worlds(packs_per_step: int, shard_size: int | None = None) -> list[int]:
    """The numbers of workers that share a step evenly: the divisors of `packs_per_step`.

    With a `shard_size`, beyond it only its multiples: groups of workers that hold all weights.
    """
    return [
        world
        for world in range(1, packs_per_step + 1)
        if packs_per_step % world == 0
        and (shard_size is None or world <= shard_size or world % shard_size == 0)
    ]
