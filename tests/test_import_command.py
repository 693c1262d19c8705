"""`feedboard import` as a person uses it."""

import json

import pytest

from tests import ancestor
from tests.ancestor import SAID, lay_images
from tests.moved import new_board
from tests.test_cli import Board


@pytest.fixture
async def old(make_database):
    """The URL of the ancestor's database."""
    return await ancestor.filled(make_database)


@pytest.fixture
def images(tmp_path):
    return lay_images(tmp_path / "images")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--database", "mysql://u@h/d", "--images", "none"), "--database: "),
        (
            ("--database", "postgresql://u@127.0.0.1:1/d", "--images", "none"),
            "the old database cannot be read",
        ),
        (("--database", "postgresql://u@127.0.0.1:1/d", "--images", "nowhere"), "no folder"),
        (("--database", "postgresql://u@h/d", "--images=none", "--timezone=Mars"), "no 'Mars'"),
    ],
)
def test_what_a_person_can_mend_is_a_sentence(command, arguments, sentence):
    failed = command("import", "ancestor", *arguments)

    assert failed.returncode == 1
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture
async def command(settings, make_database, tmp_path):
    """Run `feedboard` on the new board."""
    settings = (await new_board(settings, make_database, tmp_path)).settings
    board = Board.on(tmp_path, settings)
    board.environment["COLUMNS"] = "200"
    return board.run


def test_the_command_says_what_was_taken_and_names_the_rest(old, images, command, tmp_path):
    arguments = ("import", "ancestor", "--database", old, "--images", str(images))

    dry = command(*arguments, "--dry-run")
    first = command(*arguments, "--report", str(tmp_path / "said.jsonl"))
    again = command(*arguments)
    strict = command(*arguments, "--strict", "--as", "strict")

    assert (dry.returncode, first.returncode, again.returncode) == (0, 0, 0), first.stderr
    assert "This would be taken:" in dry.stdout
    for row, why in SAID.items():
        assert all(f"{row}: {it}." in first.stdout for it in why)
    assert _counts(first, "users") == [4, 1, 0, 2, 1, 4]
    assert _counts(first, "likes") == [3, 0, 2, 5, 0, 0]
    assert _counts(again, "likes") == [0, 3, 2, 5, 0, 0]
    assert _counts(again, "feeds") == [0, 6, 0, 5, 0, 0]
    assert strict.returncode == 1
    assert "Stopped, as --strict says. users 3: email" in strict.stderr
    remark = json.loads((tmp_path / "said.jsonl").read_text().splitlines()[0])
    assert remark == {"kind": "users", "id": "3", "degree": "skipped", "why": SAID["users 3"][0]}
    assert (tmp_path / "said.jsonl").stat().st_mode & 0o777 == 0o600


def _counts(ran, kind):
    line = next(line for line in ran.stdout.splitlines() if line.startswith(f"│ {kind} "))
    return [int(cell) for cell in line.split("│")[2:-1]]
