"""The embedded default data: rendered moving shapes, prepared when they are first asked for."""

import logging
import tempfile
from pathlib import Path

from scalewright.data.catalogue import FILE_NAME
from scalewright.prepare.encode import prepare
from scalewright.prepare.shapes import render_shapes

logger = logging.getLogger(__name__)

VIDEOS = 240
PICTURES = 160


def ensure_shapes(folder: Path) -> None:
    """Render and encode the embedded clips into `folder`, unless its catalogue is there."""
    if (folder / FILE_NAME).exists():
        return
    logger.warning("%s: rendering and encoding the embedded clips", folder)
    with tempfile.TemporaryDirectory() as media:
        captions = render_shapes(Path(media), videos=VIDEOS, pictures=PICTURES, seed=0)
        prepare(Path(media), captions, folder)
