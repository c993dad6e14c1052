"""The command lines of `init`, `convert` and `schema`, with which a configuration begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpiserve.errors import Error


def schema() -> None:
    """Print the JSON schema of CONFIG, for completion and checks in an editor."""
    from json import dumps

    from mpiserve.config.schema import schema

    print(dumps(schema(), indent=1))


def init(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model file, a Hugging Face directory, or file.py:function. Default: it asks.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the service. Default: from MODEL.")] = "",
    folder: Annotated[str, typer.Option(help="Where the files are written.")] = ".",
) -> None:
    """Write coupling.toml and simulate.py, which run as they are, for a model."""
    from mpiserve.tools import init as program

    if model is None:
        question = (
            "Model: a file, a Hugging Face directory, file.py:function, or none for an example"
        )
        model = _ask(question, "none")
        model = "" if model == "none" else model
        name = name or _ask("Name of the service", "from the model")
        name = "" if name == "from the model" else name
    try:
        made = program.files(model, name, Path(folder), _ask)
        program.write(Path(folder), made)
    except Error as error:
        print(f"mpiserve: {error}", file=typer.get_text_stream("stderr"))
        raise typer.Exit(2) from None
    where = "" if folder == "." else f"cd {folder}; "
    print(f"wrote {', '.join(made)}; run: {where}{program.RUN}")


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A TorchScript file.")],
    inputs: Annotated[
        str,
        typer.Option(
            help="Name, dtype and sizes of a row of each, as in 'x float32 3, t float64'. "
            "Default: those that torch.jit.trace has saved."
        ),
    ] = "",
    output: Annotated[str, typer.Option(help="Default: MODEL with the suffix .pt2.")] = "",
) -> None:
    """Write MODEL as a program of torch.export that takes any number of rows."""
    from mpiserve.tools import convert as program

    source = Path(model)
    target = Path(output) if output else source.with_suffix(".pt2")
    try:
        print(program.convert(source, target, inputs))
    except Error as error:
        print(f"mpiserve: {error}", file=typer.get_text_stream("stderr"))
        raise typer.Exit(2) from None


def _ask(question: str, default: str) -> str:
    return str(typer.prompt(question, default=default, err=True)).strip()
