"""Pixels written anew: upright, in sRGB, and in the format that they came in."""

from typing import BinaryIO

import pyvips


def encode(
    extension: str, image: pyvips.Image, header: pyvips.Image, file: BinaryIO, *, lossless: bool
) -> None:
    """Encode pixels anew: without loss where the format is lossless, else with little (> 40 dB)."""
    target = pyvips.Target.new_to_descriptor(file.fileno())
    options: dict[str, object] = {"keep": "none"}
    match extension:
        case "jpg":
            halved = header.get("jpeg-chroma-subsample") == "4:2:0"
            chroma = "on" if halved else "off"
            image.jpegsave_target(target, Q=95, subsample_mode=chroma, **options)
        case "png":
            image.pngsave_target(target, **options)
        case "webp":
            options |= {"lossless": lossless, "exact": True}
            image.webpsave_target(target, Q=95, effort=2, **options)
        case "avif":
            # Any effort above 0 takes at least twice the time for a quarter of the bytes.
            options |= {"compression": "av1", "Q": 80, "effort": 0}
            image.heifsave_target(target, bitdepth=header.get("bits-per-sample"), **options)


def upright(image: pyvips.Image) -> pyvips.Image:
    """Turn each frame by EXIF's orientation."""
    first, *others = [page.autorot() for page in image.pagesplit()]
    return first.pagejoin(others) if others else first


def in_srgb(image: pyvips.Image) -> pyvips.Image:
    """Bring other colour spaces to sRGB; what is sRGB by its profile comes back as it is."""
    depth = 16 if image.format == "ushort" else 8
    if image.interpretation == "cmyk":
        return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
    if not image.get_typeof("icc-profile-data"):
        return image
    noise = [pyvips.Image.gaussnoise(32, 32, mean=128, sigma=64, seed=band) for band in range(3)]
    sample = noise[0].bandjoin(noise[1:]) if image.bands > 2 else noise[0]
    sample = sample.cast("uchar").copy(interpretation="srgb" if image.bands > 2 else "b-w")
    profile = image.get("icc-profile-data")
    sample.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    try:
        if (sample.icc_transform("srgb", embedded=True) - sample).abs().max() <= 3:
            return image
        return image.icc_transform("srgb", embedded=True, depth=depth)
    except pyvips.Error:
        return image  # A broken profile, or one for other images: browsers ignore it too.
