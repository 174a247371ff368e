"""Reading examples: files and folders of splits, data sets of the hub; columns, values, samples. Nothing is dropped in silence.

Every mistake is a `PeltError` with the file, the line, and a remedy.
"""

from .columns import (
    COMPLETIONS,
    LABELS,
    PAIRS,
    TEXTS,
    Columns,
    classification_columns,
    column,
    language_columns,
    named,
    texts_of,
    values_of,
)
from .files import read, read_file
from .formats import SUFFIXES, decoded
from .labels import alike, in_order, known_labels, label_set, label_titles, labels_of, unknown_label, values_in_order
from .media import Files, Unreadable, beside, bytes_of, files_of, kind_of_file, media_column, title_of, wrong_file
from .sampling import prepare, training_split
from .split import SHOWN, Data, Split, is_unicode, kind_of_value, listed, raise_all, said, whole_number

__all__ = [
    "COMPLETIONS", "LABELS", "PAIRS", "SHOWN", "SUFFIXES", "TEXTS", "Columns", "Data", "Files", "Split", "Unreadable",
    "alike", "beside", "bytes_of", "classification_columns", "column", "decoded", "files_of", "in_order", "is_unicode", "kind_of_file", "kind_of_value", "known_labels",
    "label_set", "label_titles", "labels_of", "language_columns", "listed", "media_column", "named", "prepare", "raise_all", "read", "read_file", "said", "texts_of", "title_of", "training_split",
    "unknown_label", "values_in_order", "values_of", "whole_number", "wrong_file",
]  # fmt: skip
