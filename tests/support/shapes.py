"""Synthetic images of discs, boxes, polygons and stars, with the mask of each shape."""

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

OVERSAMPLING = 4
"""Factor by which shapes are drawn larger and then scaled down, for soft edges."""


def scene(seed: int, side: int = 256) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Return an image of two to seven overlapping shapes, and a mask of the visible part of each.

    Parameters
    ----------
    seed : the same seed and side give the same scene
    side : side of the square image, in pixels

    Returns
    -------
    An image uint8 [side, side, 3], and a mask bool [side, side] for each shape, from back to front.
    Each mask is one piece and at least half of its shape. A pixel belongs to at most one mask.
    """
    random = np.random.default_rng(seed)
    image = texture(random, side, random.uniform(0, 255, 3), spread=60)
    masks: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    count = int(random.integers(2, 8))
    smallest = (side / 16) ** 2
    for _ in range(3 * count):
        cover = draw(outline(random), side)
        mask = cover > 0.5
        visible = [behind & ~mask for behind in masks]
        if mask.sum() < smallest or any(map(hidden, visible, areas)):
            continue
        surface = texture(random, side, distinct_color(random, image, mask), spread=40)
        image += cover[..., None] * (surface - image)
        masks = [*visible, mask]
        areas.append(int(mask.sum()))
        if len(masks) == count:
            break
    image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.3, 0.8))
    image += random.normal(0, random.uniform(0, 8), image.shape).astype(np.float32)
    return image.round().clip(0, 255).astype(np.uint8), masks


def outline(random: Generator) -> NDArray[np.float64]:
    """Return the corners [n, 2] of a random disc, box, polygon or star, as (x, y) in units of the
    image's side.
    """
    kind = random.choice(["disc", "box", "polygon", "star"])
    if kind == "disc":
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        radii = np.ones(96)
    elif kind == "box":
        angles = np.arange(4) * np.pi / 2 + np.pi / 4
        radii = np.ones(4)
    elif kind == "polygon":
        corners = int(random.integers(3, 8))
        angles = (np.arange(corners) + random.uniform(-0.25, 0.25, corners)) * 2 * np.pi / corners
        radii = random.uniform(0.7, 1, corners)
    else:
        tips = int(random.integers(5, 9))
        angles = np.arange(2 * tips) * np.pi / tips
        radii = np.where(np.arange(2 * tips) % 2, random.uniform(0.45, 0.65), 1.0)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles) * random.uniform(0.55, 1)], 1)
    turn = random.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return points * random.uniform(0.09, 0.28) + random.uniform(0.1, 0.9, 2)


def draw(points: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Return the share of each pixel [side, side] that lies inside an outline, in 0..1."""
    fine = np.zeros((side * OVERSAMPLING, side * OVERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [(points * side * OVERSAMPLING).round().astype(np.int32)], 255)
    return cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def texture(
    random: Generator, side: int, color: NDArray[np.float64], spread: float
) -> NDArray[np.float32]:
    """Return a plain, shaded, striped, checkered or cloudy surface [side, side, 3].

    Parameters
    ----------
    color : mean color in 0..255
    spread : largest distance of a channel from the mean color
    """
    kind = random.choice(["plain", "gradient", "stripes", "checkers", "clouds"])
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    turn = random.uniform(0, 2 * np.pi)
    waves = random.uniform(3, 12)
    cos, sin = math.cos(turn), math.sin(turn)
    across, along = x * cos + y * sin, y * cos - x * sin
    if kind == "plain":
        pattern = np.zeros_like(x)
    elif kind == "gradient":
        pattern = across * 2 - (cos + sin)
    elif kind == "stripes":
        pattern = np.sin(2 * np.pi * waves * across)
    elif kind == "checkers":
        pattern = np.sign(np.sin(2 * np.pi * waves * across) * np.sin(2 * np.pi * waves * along))
    else:
        coarse = random.uniform(-1, 1, (int(waves), int(waves))).astype(np.float32)
        pattern = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    slope = random.uniform(-spread, spread, 3).astype(np.float32)
    return pattern[..., None] * slope + color.astype(np.float32)


def distinct_color(
    random: Generator, image: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the one of five random colors that differs most from the pixels around a mask."""
    rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~mask
    colors = random.uniform(0, 255, (5, 3))
    distances = np.linalg.norm(colors[:, None] - image[rim][None, ::4], axis=-1)
    return colors[np.argmax(np.quantile(distances, 0.1, axis=1))]


def hidden(mask: NDArray[np.bool_], area: int) -> bool:
    """Tell whether less than half of a shape's area is visible, or more than one piece."""
    pieces, _ = cv2.connectedComponents(mask.astype(np.uint8))
    # The background counts as a piece.
    return bool(mask.sum() < area / 2) or pieces > 2
