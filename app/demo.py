"""A filled board to look at: users, posts and generated pictures, through the service's own way."""

import io
import random
import secrets

import pyvips
from rich.console import Console
from rich.progress import track

from app.capabilities import open_capabilities, prepare
from app.parts import open_parts
from config.settings import Settings
from services import auth, feeds
from services.ledger import Upload
from services.readers import Reader

_NAMES = "Ada Grace Edsger Barbara Donald Radia Alan Frances Linus Margaret".split()
_SUBJECTS = "A walk,The garden,Breakfast,Rain,The night train,The sea".split(",")
_TIMES = "at dawn,in spring,on Sunday,with friends,after the storm,again".split(",")
_WORDS = (
    "We went early and had it to ourselves.",
    "I had not expected the colours.",
    "Somebody had left a chair there, so I stayed for an hour.",
    "The second picture is the better one.",
    "Nothing was planned, and it was the best day of the month.",
    "I will go back when it is warmer.",
    "Ask me for the way; it is not on the map.",
)
_SIZES = ((1200, 800), (800, 1000), (1000, 1000), (1600, 900))


async def fill(settings: Settings, *, users: int, posts: int) -> None:
    """Sign up users and write posts with up to four pictures each; says how to log in."""
    console = Console(highlight=False, soft_wrap=True)
    chance = random.Random()  # noqa: S311 - pictures, not secrets
    password, run = secrets.token_urlsafe(9), secrets.token_hex(2)
    async with open_parts(settings, share=True) as complete:
        await prepare(complete)
        async with open_capabilities(complete) as able, able.sessions() as db:
            authors = [
                await auth.signup(
                    db,
                    able.passwords,
                    email=f"{name.lower()}{number}.{run}@example.com",
                    password=password,
                    nickname=f"{name} {run} {number}",
                    verified=True,
                )
                for number, name in zip(range(users), _NAMES * 5, strict=False)
            ]
            for _ in track(range(posts), "Writing posts", console=console):
                uploads = [_picture(chance) for _ in range(chance.randint(0, 4))]
                await feeds.create(
                    db,
                    able.images,
                    author := chance.choice(authors),
                    Reader(author.id),
                    title=f"{chance.choice(_SUBJECTS)} {chance.choice(_TIMES)}",
                    content=" ".join(chance.sample(_WORDS, chance.randint(1, 4))),
                    uploads=uploads,
                )
    console.print(f"{users} users wrote {posts} posts. Log in as {authors[0].email} / {password}")


def _picture(chance: random.Random) -> Upload:
    """Hills under a sky: layers of noise, each darker and lower than the one behind it."""
    width, height = chance.choice(_SIZES)
    hue = chance.random() * 360
    rows = pyvips.Image.xyz(width, height)[1] / height
    image = _shade(rows * 35 + 60, rows * 20 + 15, hue)
    for layer in range(1, 5):
        noise = pyvips.Image.perlin(
            width, 1, cell_size=width // (2 * layer), seed=chance.getrandbits(31)
        )
        ridge = (noise * 0.12 + 0.25 + 0.15 * layer).replicate(1, height)
        hills = _shade(rows * 0 + 68 - 13 * layer, rows * 0 + 28, hue + 25 * layer)
        image = (rows > ridge).ifthenelse(hills, image)
    data = image.gaussblur(0.7).jpegsave_buffer(Q=85)
    return Upload(io.BytesIO(data), "hills.jpg", alt="Hills under an evening sky")


def _shade(lightness: pyvips.Image, chroma: pyvips.Image, hue: float) -> pyvips.Image:
    bands = lightness.bandjoin([chroma, lightness * 0 + hue % 360])
    return bands.copy(interpretation="lch").colourspace("srgb")
