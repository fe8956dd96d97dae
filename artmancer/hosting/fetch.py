"""How what lies on the volume of models is fetched: pinned and checked."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import models
from .volume import BASE, FASTSAM, REMBG


def fetch_rembg(folder: Path) -> None:
    """u2net, whose licence lets everybody use it; rembg checks its sum."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["U2NET_HOME"] = str(folder)
    from rembg.sessions.u2net import U2netSession

    U2netSession.download_models()


FETCH: Mapping[str, Callable[[Path], object]] = {
    BASE: models.fetch,
    FASTSAM: models.fetch_fastsam,
    REMBG: fetch_rembg,
}
