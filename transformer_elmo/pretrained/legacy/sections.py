"""The sections of a config: their names, old and new, and what can be said of one at a glance."""

from typing import Any

READERS = ("dataset_reader", "validation_dataset_reader")
ITERATORS = {"iterator": "data_loader", "validation_iterator": "validation_data_loader"}

# Top-level keys that hold an object, or the name of its type. Two of them can't be left out.
REQUIRED_SECTIONS = ("dataset_reader", "model")
SECTIONS = {
    *(*READERS, *ITERATORS, *ITERATORS.values()),
    *"vocabulary model trainer distributed evaluation".split(),
}
# Everything that AllenNLP 2's commands look for at the top of a config.
TOP_LEVEL_KEYS = {
    *(SECTIONS - ITERATORS.keys()),
    *"type train_data_path validation_data_path test_data_path evaluate_on_test".split(),
    *"datasets_for_vocab_creation batch_weight_key ddp_accelerator include_in_archive".split(),
    *"random_seed numpy_seed pytorch_seed".split(),
}
LANGUAGE_MODELS = {
    *"language_model bidirectional-language-model bidirectional_language_model".split()
}
LANGUAGE_MODELING_READER = "simple_language_modeling"
LANGUAGE_MODELING_LOADER = "language_modeling"


def is_experiment(config: Any) -> bool:
    """Whether `config` describes a model and its data, rather than being some other JSON file."""
    return isinstance(config, dict) and "model" in config and "dataset_reader" in config


def fits_section(key: str, value: Any) -> bool:
    """Whether the top-level `key` may have `value`, as far as its kind of value goes."""
    if key not in SECTIONS or isinstance(value, (dict, str)):
        return True
    return value is None and key not in REQUIRED_SECTIONS


def find_key(config: Any, key: str) -> list[Any]:
    """The object with the dotted `key`, and the key's last part; empty if there is no such key."""
    holder, place = None, config
    name: Any = ""
    for name in key.split("."):
        holder = place
        if isinstance(holder, list) and name in map(str, range(len(holder))):
            name = int(name)
        elif not (isinstance(holder, dict) and name in holder):
            return []
        place = holder[name]
    return [holder, name]


def type_of(section: Any) -> str:
    """The type that a section of a config names, which may be all of it; `""` if it names none."""
    name = section.get("type") if isinstance(section, dict) else section
    return name if isinstance(name, str) else ""


def reader_key(config: dict[str, Any], loader: str) -> str:
    """The key of the reader that the data loader at the key `loader` serves."""
    is_for_validation = loader == "validation_data_loader" and READERS[1] in config
    return READERS[1] if is_for_validation else READERS[0]


def reads_sentences(config: dict[str, Any], loader: str) -> bool:
    """Whether the loader at the key `loader` can be of the type `language_modeling`."""
    reader = type_of(config.get(reader_key(config, loader)))
    return type_of(config.get("model")) in LANGUAGE_MODELS and reader == LANGUAGE_MODELING_READER
