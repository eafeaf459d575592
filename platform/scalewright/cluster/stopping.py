"""After which step all ranks of an attempt save and end. Pure.

Ranks look at a file on their node after every step. A step some way ahead is ordered, so that every
rank finds the order before it gets there.
"""

import math
from collections.abc import Sequence

from scalewright.heartbeat import Beat

# Time for the order to reach every node, and steps for a rank that runs ahead of its device.
AHEAD_S = 2.0
AHEAD_STEPS = 2


def stop_after(beats: Sequence[Beat], ordered: int | None = None) -> int | None:
    """The number of steps to have done by then, if that is to be ordered now.

    None until every rank has taken a step. An order that came too late to all ranks is given
    again; where it came too late to some, they wait for the others, and no order helps.
    """
    if not beats or any(beat.done == 0 for beat in beats):
        return None
    if ordered is not None and any(beat.step <= ordered for beat in beats):
        return None
    quickest_s = min(beat.last_s for beat in beats)
    steps = math.ceil(AHEAD_S / max(quickest_s, 1e-3)) + AHEAD_STEPS
    return max(beat.step for beat in beats) + 1 + steps
