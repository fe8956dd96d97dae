"""White balance in a photo's own color profile, against the same photo in sRGB.

The photos get a cast in linear light, and are stored in each profile in floating point; then the
draft editor balances the values as they are, as `artmancer edit` does. "own curve" is what it would
be if the values were first brought to the curve of sRGB by the profile. The truth is the photo
without the cast.

Usage: python benchmarks/profiles.py [--json]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from report import Row, finish, machine
from support.odd_files import ADOBE, P3, SRGB, to_xyz
from support.paths import EXAMPLES

from artmancer import color, draft, images

PHOTOS = ("astronaut", "chelsea", "coffee")

CASTS = {"tungsten": (1.25, 1.0, 0.6), "shade": (0.8, 1.0, 1.3), "green": (0.9, 1.15, 0.9)}
"""Factors of red, green and blue in linear light."""

PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))

PROFILES: dict[str, tuple[tuple[tuple[float, float], ...], float | None]] = {
    "sRGB": (SRGB, None),
    "Display P3": (P3, None),
    "Adobe RGB": (ADOBE, 563 / 256),
    "ProPhoto RGB": (PROPHOTO, 1.8),
    "linear P3": (P3, 1.0),
}
"""Primaries, and the gamma; None: the curve of sRGB. The white is D65 in all."""


def encode(linear: np.ndarray, gamma: float | None) -> np.ndarray:
    """Return the values of a profile for linear light."""
    if gamma is None:
        return color.to_srgb(torch.from_numpy(linear)).numpy()
    return linear.clip(0) ** (1 / gamma)


def decode(values: np.ndarray, gamma: float | None) -> np.ndarray:
    """Return the linear light of a profile's values."""
    if gamma is None:
        return color.to_linear(torch.from_numpy(values)).numpy()
    return values.clip(0) ** gamma


def balance(values: np.ndarray) -> np.ndarray:
    """Return values [h, w, 3] as the draft editor balances them."""
    image = torch.from_numpy(values).float().unsqueeze(0)
    return draft.balance(image, torch.ones(image.shape[:3]), 1.0)[0].double().numpy()


def to_lab(linear: np.ndarray) -> np.ndarray:
    """Return the Lab of linear sRGB, with the white D65."""
    from skimage.color import xyz2lab

    return xyz2lab(linear @ to_xyz(SRGB).T, illuminant="D65")


def errors() -> dict[str, tuple[float, float]]:
    """Return the mean difference (CIEDE2000) by profile: as it is, and with the profile's curve."""
    from skimage.color import deltaE_ciede2000

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROFILES}
    for photo in PHOTOS:
        values = images.load(EXAMPLES / f"{photo}.png").image[0, ::4, ::4].double()
        truth = color.to_linear(values).numpy() * 0.7
        for cast in CASTS.values():
            for name, (primaries, gamma) in PROFILES.items():
                matrix = np.linalg.solve(to_xyz(primaries), to_xyz(SRGB))
                light = (truth * cast).clip(0, 1) @ matrix.T
                plain = decode(balance(encode(light.clip(0, 1), gamma)), gamma)
                curved = decode(balance(encode(light.clip(0, 1), None)), None)
                back = np.linalg.inv(matrix).T
                found[name].append(
                    tuple(
                        float(deltaE_ciede2000(to_lab(truth), to_lab(result @ back)).mean())
                        for result in (plain, curved)
                    )
                )
    return {name: tuple(np.mean(pairs, 0)) for name, pairs in found.items()}


def main() -> int:
    """Print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table = errors()
    if not arguments.json:
        sys.stdout.write(f"{machine()}\n\nmean CIEDE2000 to the photo without its cast\n\n")
        sys.stdout.write(f"{'':14}  as it is  own curve\n")
        for name, (plain, curved) in table.items():
            sys.stdout.write(f"{name:14}  {plain:>8.2f}  {curved:>9.2f}\n")
        sys.stdout.write("\n")
    rows = [
        Row(f"{name}: lost by taking its curve for that of sRGB", plain - curved, "", 1.0)
        for name, (plain, curved) in table.items()
    ]
    return finish(rows, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
