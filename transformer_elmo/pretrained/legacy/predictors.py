"""Names of predictors, as AllenNLP 0.x had them on its command line."""

from collections.abc import Collection

RENAMED_PREDICTORS = {"machine-comprehension": "reading_comprehension", "simple_seq2seq": "seq2seq"}


def modern_predictor(name: str, known: Collection[str]) -> str:
    """
    `known`: the names that there are. Returns the one that does today what `name` did. `name`
    itself where it is known, or none of them does.
    """
    modern = RENAMED_PREDICTORS.get(name, name.replace("-", "_"))
    return modern if name not in known and modern in known else name
