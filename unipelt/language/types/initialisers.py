"""The starting distributions that a tensor may name, with what each needs. How they are drawn is `compiler.initialise`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Initialiser:
    """A starting distribution. ``data`` names what it needs when a method is attached; ``words``: it takes rows
    of the model's word embeddings; ``matrix``: its entries differ by row and column, so a tensor needs two sizes; ``positive``: it
    takes a number above 0; ``drawn``: at random; ``alike``: all entries the same way, so that a transpose starts the same;
    ``level``: all entries are one number, this one or, where it is None, the argument; ``whole``: whole numbers, below the
    argument or those of a list;
    ``given``: never drawn, since its values are brought by who attaches the method."""

    name: str
    arity: tuple[int, int]
    doc: str
    data: str | None = None
    text: bool = False
    words: bool = False
    matrix: bool = False
    positive: bool = False
    drawn: bool = True
    alike: bool = False
    level: float | None | bool = False
    whole: bool = False
    given: bool = False

    @property
    def one_number(self) -> bool:
        return self.level is not False


INITIALISERS: dict[str, Initialiser] = {
    i.name: i
    for i in (
        Initialiser("zeros", (0, 0), "0", drawn=False, alike=True, level=0.0),
        Initialiser("ones", (0, 0), "1", drawn=False, alike=True, level=1.0),
        Initialiser("constant", (1, 1), "the number given", drawn=False, alike=True, level=None),
        Initialiser("normal", (1, 2), "normal(std) or normal(mean, std)", alike=True),
        Initialiser(
            "truncated_normal", (1, 1), "normal(std), cut at two standard deviations", positive=True, alike=True
        ),
        Initialiser("uniform", (2, 2), "uniform between two numbers", alike=True),
        Initialiser("kaiming_uniform", (1, 1), "bound sqrt(6 / ((1 + a^2) fan_in)), fan_in = the first size"),
        Initialiser("xavier_uniform", (0, 0), "bound sqrt(6 / (fan_in + fan_out))", alike=True),
        Initialiser("xavier_normal", (0, 0), "std sqrt(2 / (fan_in + fan_out))", alike=True),
        Initialiser(
            "torch_linear",
            (1, 1),
            "torch's default for a linear layer with that fan_in: U(±1/sqrt(fan_in))",
            positive=True,
        ),
        Initialiser("orthogonal", (0, 0), "orthonormal columns", matrix=True),
        Initialiser("identity", (0, 0), "the identity matrix", matrix=True, drawn=False),
        Initialiser("choice", (1, 1), "distinct whole numbers below the one given", positive=True, whole=True),
        Initialiser(
            "permutation", (1, 1), "all whole numbers below the one given, in a random order", positive=True, whole=True
        ),
        Initialiser(
            "integers", (1, 1), "whole numbers below the one given, each drawn by itself", positive=True, whole=True
        ),
        Initialiser("listed", (1, 4096), "the whole numbers given, in their order", drawn=False, whole=True),
        Initialiser("values", (1, 4096), "the numbers given, in their order, row by row", drawn=False),
        Initialiser(
            "sampled_tokens", (0, 0), "rows of the word embedding, drawn from the vocabulary", words=True, matrix=True
        ),
        Initialiser(
            "tokens",
            (1, 1),
            "the word embeddings of a text, repeated to fill",
            "a tokenizer",
            text=True,
            words=True,
            matrix=True,
        ),
        Initialiser(
            "label_words",
            (0, 0),
            "the word embeddings of the class labels' words, each the mean of its tokens, then "
            "sampled tokens (Lester et al. 2021)",
            "a tokenizer and the words of the class labels",
            words=True,
            matrix=True,
        ),
        Initialiser("given", (0, 0), "the values of a trained adapter, which are stored with this one", given=True),
        Initialiser(
            "given_integers",
            (1, 1),
            "whole numbers of a trained adapter below the one given, which are stored with this one",
            positive=True,
            whole=True,
            given=True,
        ),
    )
}
