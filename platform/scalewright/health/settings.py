"""When a rank counts as hung, and when as slow."""

from dataclasses import dataclass, fields

from scalewright.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What nodes are asked, how long a rank may stand still, and how slow it may be.

    Every node runs its checks each `check_period_s`; those named in `shadow` are recorded and never
    acted upon. With `preflight` nodes are compared before they are used; what was measured of one
    holds for `preflight_cache_s` of one boot.

    A step hangs after `hang_factor` times what it should take, by its FLOPs and the slowest steps
    so far (the first `warmup_steps` apart), and no sooner than `hang_min_s`. Other phases have
    limits of their own; `compile_s` is that of the first step, and of every first of its kind where
    blocks are compiled. A process that is stopped, or all in the kernel, is frozen after
    `frozen_s`. Waiting for data is told of after `data_alarm_s`, and ends the attempt after
    `data_s`.

    Own work is timed in every `timed_every_steps`-th step. A rank is slow whose speed, compared
    with that of its peers, is below `slow_speed` in `slow_windows` windows of `slow_window_s` in a
    row; below `swap_speed` it is worth a restart at once.
    """

    check_period_s: float = 15.0
    shadow: tuple[str, ...] = ()
    preflight: bool = True
    preflight_cache_s: float = 86_400.0
    hang_min_s: float = 60.0
    hang_factor: float = 5.0
    warmup_steps: int = 5
    frozen_s: float = 30.0
    start_s: float = 1200.0
    resume_s: float = 1200.0
    compile_s: float = 1200.0
    save_s: float = 1200.0
    validate_s: float = 1200.0
    sample_s: float = 1200.0
    data_alarm_s: float = 120.0
    data_s: float = 1200.0
    timed_every_steps: int = 1
    slow_speed: float = 0.9
    swap_speed: float = 0.75
    slow_window_s: float = 60.0
    slow_windows: int = 3

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.endswith("_s") and not value > 0:
                raise ConfigError(f"health.{each.name} = {value}; it must be positive")
        if self.hang_factor < 1:
            raise ConfigError(
                f"health.hang_factor = {self.hang_factor}; at least 1, or steps that take as long "
                "as they should are hangs"
            )
        if self.frozen_s < 3:
            raise ConfigError(
                f"health.frozen_s = {self.frozen_s}; at least 3, as the second thread beats every "
                "second"
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"health.warmup_steps = {self.warmup_steps}; at least 0")
        for name in ("timed_every_steps", "slow_windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"health.{name} = {getattr(self, name)}; at least 1")
        if self.data_s < self.data_alarm_s:
            raise ConfigError(
                f"health.data_s = {self.data_s} is less than health.data_alarm_s = "
                f"{self.data_alarm_s}; tell of a wait before it ends the attempt"
            )
        if not 0 < self.swap_speed <= self.slow_speed < 1:
            raise ConfigError(
                f"health.swap_speed = {self.swap_speed} and health.slow_speed = "
                f"{self.slow_speed}; expected 0 < swap_speed <= slow_speed < 1"
            )
