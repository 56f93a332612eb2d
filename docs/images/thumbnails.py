"""Cuts the thumbnails of the gallery from the pictures of the examples: `python docs/images/thumbnails.py`."""

import pathlib

from PIL import Image, ImageOps

# The part of each picture that is shown: left, top, right and bottom, as fractions of its width and height.
PARTS = {
    "augmented": (0.33, 0.502, 0.665, 1.0),
    "bayesian": (0.0, 0.0, 0.5, 0.485),
    "digits": (0.67, 0.036, 1.0, 0.525),
    "distributed": (0.0, 0.0, 1.0, 0.43),
    "flows": (0.272, 0.054, 0.748, 0.508),
    "latent_ode": (0.0, 0.0, 0.5, 0.415),
    "linear_multistep": (0.0, 0.0, 1.0, 0.505),
    "mechanics": (0.669, 0.0, 1.0, 0.88),
    "odenet_vs_resnet": (0.481, 0.0, 1.0, 1.0),
    "shooting": (0.0, 0.0, 0.484, 0.87),
    "stable_architectures": (0.66, 0.5, 1.0, 1.0),
    "universal": (0.48, 0.0, 1.0, 0.435),
    "cde": (0.0, 0.0, 0.505, 1.0),
    "nfe_figures": (0.0, 0.0, 0.5, 0.5),
    "flows_width": (0.665, 0.0, 0.865, 0.64),
}
SIZE = (640, 400)


def main():
    folder = pathlib.Path(__file__).parent
    (folder / "thumbnails").mkdir(exist_ok=True)
    for name, (left, top, right, bottom) in PARTS.items():
        if not (folder / f"{name}.png").exists():
            continue
        image = Image.open(folder / f"{name}.png").convert("RGB")
        width, height = image.size
        part = image.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
        ImageOps.pad(part, SIZE, Image.Resampling.LANCZOS, color="white").quantize(64).save(
            folder / "thumbnails" / f"{name}.png", optimize=True
        )


if __name__ == "__main__":
    main()
