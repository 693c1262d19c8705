"""`feedboard doctor`: whether all that the service stands on is as it has to be, and what to do."""

import json
from contextlib import aclosing
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from app import checks, pooler
from app.checks import Found, Level
from app.parts import open_parts
from config.settings import Settings

out = Console(highlight=False, soft_wrap=True)
_COLORS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red"}


class Doctor:
    """One examination; `as_json` prints a line of JSON for each thing that was found."""

    failed = False

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    async def run(self, settings: Settings) -> None:
        """Look at everything, also where something is amiss; raises what `open_parts` does."""
        async with open_parts(settings, share=True) as complete:
            for examine in (*checks.ALL, pooler.examine):
                async with aclosing(examine(complete)) as found:
                    async for it in found:
                        self._say(it)
        if self.failed:
            raise typer.Exit(1)

    def _say(self, it: Found) -> None:
        self.failed |= it.level is Level.FAILED
        if self._as_json:
            print(json.dumps(asdict(it)), flush=True)
            return
        level = f"[{_COLORS[it.level]}]{it.level:<8}[/]"
        out.print(f"{level} {it.part:<12} {escape(it.found)}")
        if it.do:
            out.print(f"{'':<22}[bold]{escape(it.do)}[/]")
