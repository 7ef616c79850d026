"""The site's page on the command line: every verb with its options, as the program knows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main
from mkdocs.structure.files import File

from mpq_compile.cli import app

PAGE = "command_line.md"
_HEAD = """# Command line

Written by the build from the program itself; `mpq VERB --help` prints the same.

"""


def on_files(files: Any, config: Any) -> Any:
    """Add the page to the site's."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page, Markdown."""
    root = typer.main.get_command(app)
    verbs = "\n\n".join(section(words, verb) for words, verb in _verbs("mpq", root))
    return f"{_HEAD}{_text(root.epilog or '')}\n\n{verbs}\n"


def section(words: str, verb: Any) -> str:
    """Return what is said of one verb: its purpose, how it is called, its options by panel."""
    context = verb.context_class(verb, info_name=words)
    usage = " ".join([words, *verb.collect_usage_pieces(context)])
    parts = [f"## {words}", _text(verb.help or ""), f"```text\n{usage}\n```"]
    panels: dict[str, list[str]] = {}
    for parameter in verb.params:
        record = parameter.get_help_record(context)
        if record is not None:
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            panels.setdefault(panel, []).append(_row(*record))
    for panel, rows in panels.items():
        parts.append("\n".join([f"| {panel} | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _verbs(words: str, verb: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below ``verb`` that does something by itself."""
    if not hasattr(verb, "list_commands"):
        yield words, verb
        return
    context = verb.context_class(verb, info_name=words)
    for name in verb.list_commands(context):
        inner = verb.get_command(context, name)
        if not inner.hidden:
            yield from _verbs(f"{words} {name}", inner)


def _row(option: str, meaning: str) -> str:
    return f"| `{_cell(option)}` | {_cell(_text(meaning))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(text: str) -> str:
    """Return help as Markdown that shows it as it stands: words in brackets are no tags."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
