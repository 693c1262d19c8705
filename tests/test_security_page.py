"""The page on security names only what there is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()


def _tests(file: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, functions)}


def test_each_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)

    assert len(named) == PAGE.count("::") > 30
    missing = [
        f"{file}::{name}" for file, name in named if name not in _tests(ROOT / "tests" / file)
    ]
    assert missing == []


def test_each_of_the_ten_risks_has_its_row_and_its_tests():
    rows = re.findall(r"^\| API(\d+) .*$", PAGE, re.MULTILINE)

    assert rows == [str(number) for number in range(1, 11)]
    for row in re.findall(r"^\| API.*$", PAGE, re.MULTILINE):
        assert "::test_" in row.split(" | ")[2], row


def test_commands_and_links_of_the_page_lead_somewhere():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall("`make ([a-z]+)`", PAGE):
        assert re.search(f"^{target}:", makefile, re.MULTILINE), target
    for page, heading in re.findall(r"\]\(([\w.]+)#([\w-]+)\)", PAGE):
        headings = re.findall("^#+ (.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        assert heading in {text.lower().replace(" ", "-") for text in headings}
