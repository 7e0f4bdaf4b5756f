"""Names of predictors, as AllenNLP 0.x had them on its command line."""

from typing import Collection

RENAMED_PREDICTORS = {"machine-comprehension": "reading_comprehension", "simple_seq2seq": "seq2seq"}


def modern_predictor(name: str, known: Collection[str]) -> str:
    """
    # Parameters

    name : `str`
    known : `Collection[str]`
        The names that there are.

    # Returns

    `str`
        The one that does today what `name` did. `name` itself where it is known, or none of them
        does.
    """
    modern = RENAMED_PREDICTORS.get(name, name.replace("-", "_"))
    return modern if name not in known and modern in known else name
