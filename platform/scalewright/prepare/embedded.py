"""The embedded default data: rendered moving shapes, prepared when they are first asked for."""

import logging
import os
import tempfile
from pathlib import Path

from scalewright.data.catalogue import FILE_NAME
from scalewright.prepare.encode import prepare
from scalewright.prepare.shapes import render_shapes

logger = logging.getLogger(__name__)

VIDEOS = 240
PICTURES = 160


def ensure_shapes(folder: Path) -> None:
    """Render and encode the embedded clips into `folder`, whole or not at all, if not yet there."""
    if (folder / FILE_NAME).exists():
        return
    logger.warning("%s: rendering and encoding the embedded clips", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        media, part = Path(scratch) / "media", Path(scratch) / "data"
        captions = render_shapes(media, videos=VIDEOS, pictures=PICTURES, seed=0)
        prepare(media, captions, part)
        os.replace(part, folder)
