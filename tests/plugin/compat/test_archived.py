import io
import json
import pickle
import tarfile

import pytest
import torch
from allennlp.data import Vocabulary
from allennlp.models.archival import load_archive
from allennlp.nn import util as nn_util
from allennlp.nn.initializers import PretrainedModelInitializer

from tests.plugin.compat.test_configs import MODERN
from transformer_elmo.errors import ConfigurationError


class TestWeights:
    @pytest.mark.parametrize("new_format", [True, False])
    def test_good_ones_are_allennlps(self, tmp_path, new_format):
        state = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
        path = tmp_path / "weights.th"
        torch.save(state, path, _use_new_zipfile_serialization=new_format)
        read = nn_util.read_state_dict(path)
        assert list(read) == ["a", "b.c"]
        assert torch.equal(read["a"], state["a"])
        assert list(nn_util.read_state_dict(path, strip_prefix="b.", strict=False)) == ["a", "c"]
        assert list(nn_util.read_state_dict(path, ignore=["^a$"])) == ["b.c"]

    @pytest.mark.parametrize("new_format", [True, False])
    def test_no_pickle_is_run(self, tmp_path, new_format):
        torch.save(Hostile(), tmp_path / "w.th", _use_new_zipfile_serialization=new_format)
        with pytest.raises(ConfigurationError, match=r"w\.th holds something other than tensors"):
            nn_util.read_state_dict(tmp_path / "w.th")
        (tmp_path / "plain.th").write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(ConfigurationError, match=r"plain\.th"):
            nn_util.read_state_dict(tmp_path / "plain.th")
        assert not Hostile.was_run

    @pytest.mark.parametrize("content", [b"", b"weights", bytes(5000)])
    def test_damaged_ones_are_told_by_name(self, tmp_path, content):
        (tmp_path / "weights.th").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"weights\.th"):
            nn_util.read_state_dict(tmp_path / "weights.th")

    def test_what_holds_no_names(self, tmp_path):
        torch.save([torch.ones(1)], tmp_path / "weights.th")
        with pytest.raises(ConfigurationError, match="holds a list"):
            nn_util.read_state_dict(tmp_path / "weights.th")


@pytest.mark.parametrize(
    "file, change, said",
    [
        ("config.json", ('"filters": [[1, 8]', '"filters": [[2, 8]'), r"char_conv_0.*\(8, 8, 1\)"),
        ("config.json", ('"num_layers": 2', '"num_layers": 1'), r"layers\.1\..* is unknown to it"),
        ("config.json", ('"num_layers": 2', '"num_layers": 3'), r"layers\.2\..* is missing; and"),
        (
            "vocabulary/non_padded_namespaces.txt",
            ("*labels", "tokens"),
            r"softmax_w\.weight has shape",
        ),
    ],
)
def test_weights_of_another_model_are_told_in_one_line(lm_archive, tmp_path, file, change, said):
    with tarfile.open(lm_archive) as tar:
        tar.extractall(tmp_path, filter="data")
    content = (tmp_path / file).read_text()
    assert change[0] in content
    (tmp_path / file).write_text(content.replace(*change))
    with pytest.raises(ConfigurationError, match=said) as raised:
        load_archive(str(tmp_path))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


class Hostile:
    was_run = False

    def __reduce__(self):
        return (_run, ())


def _run():
    Hostile.was_run = True
    return {}


class TestArchives:
    @pytest.fixture
    def write(self, tmp_path):
        def write(config=MODERN, leave_out=()):
            vocabulary = Vocabulary(tokens_to_add={"tokens": ["a"], "labels": ["X", "Y"]})
            folder = tmp_path / "vocabulary"
            vocabulary.save_to_files(str(folder))
            weights = io.BytesIO()
            shapes = {
                "text_field_embedder.token_embedder_tokens.weight": (3, 3),
                "encoder._module.weight_ih_l0": (8, 3),
                "encoder._module.weight_hh_l0": (8, 2),
                "encoder._module.bias_ih_l0": (8,),
                "encoder._module.bias_hh_l0": (8,),
                "tag_projection_layer._module.weight": (2, 2),
                "tag_projection_layer._module.bias": (2,),
            }
            torch.save({name: torch.rand(shape) for name, shape in shapes.items()}, weights)
            contents = {
                "config.json": json.dumps(config).encode(),
                "weights.th": weights.getvalue(),
            }
            for file in sorted(folder.iterdir()):
                if not file.name.startswith("."):
                    contents[f"vocabulary/{file.name}"] = file.read_bytes()
            path = tmp_path / "model.tar.gz"
            with tarfile.open(path, "w:gz") as tar:
                for name, content in contents.items():
                    if not any(name.startswith(start) for start in leave_out):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            return path

        return write

    def test_a_good_one(self, write):
        model = load_archive(write()).model
        assert model.vocab.get_token_index("Y", "labels") == 1

    def test_on_a_gpu_that_is_not_there(self, write):
        number = torch.cuda.device_count()
        with pytest.raises(ConfigurationError, match=f"GPU {number} .*--cuda-device"):
            load_archive(write(), cuda_device=number)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("config.json", r"model\.tar\.gz has no config\.json"),
            ("weights.th", r"model\.tar\.gz has no weights"),
            ("vocabulary", r"model\.tar\.gz has no folder vocabulary"),
            ("vocabulary/non", r"model\.tar\.gz has no non_padded_namespaces\.txt"),
        ],
    )
    def test_one_that_lacks_a_part(self, write, missing, message):
        with pytest.raises(ConfigurationError, match=message):
            load_archive(write(leave_out=[missing]))

    @pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.exec"])
    def test_a_config_calls_no_function(self, write, name):
        model = {**MODERN["model"], "encoder": {"type": name, "args": "true"}}
        with pytest.raises(ConfigurationError, match=f"{name}.*Don't trust"):
            load_archive(write({**MODERN, "model": model}))

    def test_a_config_may_name_classes_by_their_modules(self, write):
        name = "allennlp.models.simple_tagger.SimpleTagger"
        archive = load_archive(write({**MODERN, "model": {**MODERN["model"], "type": name}}))
        assert type(archive.model).__name__ == "SimpleTagger"

    def test_a_vocabulary_of_duplicates_opens_as_it_was_trained(self, write, tmp_path, caplog):
        path = write()
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        labels = tmp_path / "unpacked" / "vocabulary" / "labels.txt"
        labels.write_text("X\nY\nX\n")
        with tarfile.open(path, "w:gz") as tar:
            for file in (tmp_path / "unpacked").iterdir():
                tar.add(file, arcname=file.name)
        assert load_archive(path).model.vocab.get_vocab_size("labels") == 2
        assert "the word 'X' is also on line 1" in caplog.text

    def test_the_pretrained_initializer_reads_an_archive(self, write):
        initializer = PretrainedModelInitializer(str(write(leave_out=["config.json"])))
        assert "tag_projection_layer._module.bias" in initializer.weights
