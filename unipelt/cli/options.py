"""Options and arguments that several commands have, each with the one help text that all of them show.

An option of a single command stands in that command's signature, in `app` or `exporting`; what values mean is known to those who
act on them (`training.config`, `training.resolve`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


# Of a method.
def methods_that_begin(incomplete: str) -> list[str]:
    """The library's methods that a shell may complete a word to."""
    from ..language.library import library_names

    return [name for name in library_names("method") if name.startswith(incomplete)]


MethodName = Annotated[
    str,
    typer.Argument(
        metavar="METHOD", help="A method of the library, a `.pelt` file (`file.pelt:name`), or `a+b`.",
        autocompletion=methods_that_begin,
    ),
]  # fmt: skip
Arguments = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Bind an argument of the method; repeatable.")
]
AllowFuture = Annotated[
    bool, typer.Option("--allow-future", help="Allow a method that sees later tokens on a causal model.")
]
HeadName = Annotated[
    str | None, typer.Option("--head", help="Add a head of the library, such as `mean`. Default: the model's own.")
]

# Of data and their task.
Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="A jsonl, csv or Parquet file, a folder of splits, or `hub:user/name`, a data set of the hub.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(help="sequence-classification, token-classification, question-answering, causal-lm, seq2seq or pet; "
                 "default: by the data."),
]  # fmt: skip
TaskOfSaved = Annotated[
    str | None, typer.Option("--task", help="Of an adapter that no run made: its task, as in `train`.")
]
TextColumns = Annotated[str | None, typer.Option(help="The text column; two, as in `premise,hypothesis`, for pairs.")]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="The column of labels, tags or answers; several of 0 and 1, as in `spam,rude`, for multi-label."),
]
Pattern = Annotated[
    str | None,
    typer.Option(help="A template of the input, as in `{text} It was {mask}.`; `{prompt:3}` for pseudo-tokens."),
]
LabelWords = Annotated[
    str | None,
    typer.Option("--words", help="pet: the labels' words in their order, or `0=bad,1=good|fine`, or a JSON file."),
]
Loss = Annotated[str | None, typer.Option(help="causal-lm: count `completion` tokens only, or `all`.")]
Chat = Annotated[
    bool, typer.Option("--chat", help="causal-lm: put prompts and answers into the tokenizer's chat template.")
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens per example; longer ones are cut, and counted. Default: 128, and 384 for question-answering."
    ),
]
MaxTargetLength = Annotated[int | None, typer.Option(help="Tokens of a target or of a generated answer. Default: 128.")]
Generate = Annotated[
    bool | None,
    typer.Option(
        "--generate/--no-generate",
        help="BLEU, chrF, ROUGE and exact match of generated answers; seq2seq does by itself.",
    ),
]
AnswerAfter = Annotated[
    str | None, typer.Option(help="Exact match looks behind the last of these marks, as in GSM8K's `####`.")
]

# Of a space of methods.
NewFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write each member as a `.pelt` file into this new folder.")
]
OnModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Keep what goes onto this model (folder or configuration).")
]
OnTask = Annotated[str, typer.Option("--task", help="The model's task, as for `plan`.")]
Budget = Annotated[
    str | None, typer.Option("--params", help="Equal budget: solve each member's size, as in 0.5% or 500000.")
]
Solved = Annotated[str | None, typer.Option("--size", help="The argument to solve; default: the one that counts most.")]
RowName = Annotated[str | None, typer.Option("--row", help="The row, where the method has several.")]

# Of a saved adapter.
Folder = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="The folder of `unipelt train --out` or `unipelt.save`, or `user/name[@revision]` on the hub.",
    ),
]
Base = Annotated[str | None, typer.Option("--model", "-m", help="The base model; default: the one trained on.")]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Of the base: float32, bfloat16 or float16. Default: the run's, else as it is stored."
    ),
]
Rebound = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Bind an argument anew that leaves the tensors as they are, as `drop=5`."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Attach to a base with other weights than the one trained on.")]
