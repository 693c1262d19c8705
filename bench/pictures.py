"""Pictures cleaned with all variants, on two cores: ours against Pillow doing the same.

Run by `python -m bench.pictures`, for photos of 12 megapixels that it makes, or with a folder of
JPEGs. Both run in turn, each in a process of its own with two threads; printed are medians, and
the medians of ours by Pillow's of the same round. The memory is a process's peak (resident, MiB),
and what of it came on top of the libraries and the photos as loaded. Pillow has to encode the
original anew, with the tables that it came with, to lose its metadata; it draws each variant from
the one before, with the same WebP settings, and is spared the colour and the placeholder.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

ROUNDS = 7
PHOTOS = 4
TIMES = 4
CORES = 2
WIDTHS = (1920, 960, 320)

Clean = Callable[[bytes], None]


def main() -> None:
    match sys.argv[1:]:
        case ["ours" | "pillow" as side, folder]:
            measure({"ours": ours, "pillow": pillow}[side], Path(folder))
        case [folder]:
            compare(Path(folder))
        case _:
            with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
                make_photos(Path(folder))
                compare(Path(folder))


def compare(folder: Path) -> None:
    rounds: dict[str, list[tuple[float, float, float]]] = {"ours": [], "pillow": []}
    for _ in range(ROUNDS):
        for side, measured in rounds.items():
            command = [sys.executable, "-m", "bench.pictures", side, str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            rate, peak, added = map(float, done.stdout.split())
            measured.append((rate, peak, added))
    for side, measured in rounds.items():
        rates, peaks, added = zip(*measured, strict=True)
        print(
            f"{side:<7} {statistics.median(rates):5.2f} pictures/s "
            f"({min(rates):.2f} to {max(rates):.2f})   {statistics.median(peaks):4.0f} MiB, "
            f"{statistics.median(added):4.0f} of them for the work"
        )
    pairs = list(zip(rounds["ours"], rounds["pillow"], strict=True))
    faster, peak, added = (
        statistics.median(mine[figure] / theirs[figure] for mine, theirs in pairs)
        for figure in range(3)
    )
    print(f"{faster:.2f} x the throughput, {peak:.2f} x the peak, {added:.2f} x the memory added")


def measure(load: Callable[[], Clean], folder: Path) -> None:
    """Print pictures a second, the peak memory in MiB, and by how much it exceeds the idle one."""
    photos = [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))]
    clean = load()
    idle = memory("VmRSS")
    with ThreadPoolExecutor(CORES) as threads:
        wait_for(threads.map(clean, photos[:CORES]))
        began = time.perf_counter()
        wait_for(threads.map(clean, photos * TIMES))
        taken = time.perf_counter() - began
    print(len(photos) * TIMES / taken, memory("VmHWM"), memory("VmHWM") - idle)


def wait_for(results: Iterable[None]) -> None:
    for _ in results:
        pass


# Each side imports its own library alone, so that its memory is its own.
def ours() -> Clean:
    from services.pictures import Limits, clean

    def cleaned(photo: bytes) -> None:
        clean(BytesIO(photo), "photo.jpg", Limits(2**30, 10**9), WIDTHS).close()

    return cleaned


def pillow() -> Clean:
    from PIL import Image

    def cleaned(photo: bytes) -> None:
        with Image.open(BytesIO(photo)) as original, tempfile.TemporaryFile() as kept:
            original.save(kept, "JPEG", quality="keep", exif=b"")
            image: Image.Image = original
            for width in WIDTHS:
                height = round(image.height * width / image.width)
                image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
                with tempfile.TemporaryFile() as file:
                    image.save(file, "WEBP", quality=80, method=2)

    return cleaned


def memory(figure: str, process: int | str = "self") -> float:
    """A figure of the kernel's (VmRSS, VmHWM) in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if figure in line)


def make_photos(folder: Path) -> None:
    for number in range(PHOTOS):
        photo(number).jpegsave(str(folder / f"{number}.jpg"), Q=90, keep="none")


def photo_within(size: int, number: int, scale: float) -> bytes:
    """A JPEG of the best quality that stays within so many bytes."""
    image = photo(number, scale).copy_memory()

    def encoded(quality: int) -> bytes:
        data: bytes = image.jpegsave_buffer(Q=quality, keep="none")
        return data

    qualities = range(1, 101)
    return encoded(bisect_right(qualities, size, key=lambda quality: len(encoded(quality))))


def photo(number: int, scale: float = 2) -> Any:
    """Like a photo in what a codec sees: soft shapes of all sizes, edges, gradients, some grain.

    It is 2,000 x 1,500 pixels, times the scale.
    """
    import pyvips

    light, tint, shapes = (texture(100 * number + 10 * band) for band in range(3))
    light += pyvips.Image.xyz(light.width, light.height)[1] / 20 + 60
    mask = (shapes > 0).gaussblur(0.7) / 255
    bands = [light * (0.7 + 0.6 * mask) + tint * 0.5, light, light + 40 * mask - tint * 0.4]
    image = bands[0].bandjoin(bands[1:]).resize(scale)
    grain = pyvips.Image.gaussnoise(image.width, image.height, mean=0, sigma=3, seed=number)
    return (image + grain).cast("uchar").copy(interpretation="srgb")


def texture(seed: int, width: int = 2_000, height: int = 1_500) -> Any:
    """Noise of every size, the finer the fainter, as it about is in photos."""
    import pyvips

    total = pyvips.Image.black(width, height)
    for octave in range(9):
        across = 4 * 2**octave
        cells = [across + 4, across * height // width + 4]
        noise = pyvips.Image.gaussnoise(*cells, mean=0, sigma=45 * 0.6**octave, seed=seed + octave)
        total += noise.resize(width / across, kernel="cubic").crop(0, 0, width, height)
    return total.copy_memory()


if __name__ == "__main__":
    main()
