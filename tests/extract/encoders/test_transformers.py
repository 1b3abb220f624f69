"""Text models of transformers: its own pooled output, what identifies them, what is refused."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedclip.cache import FedclipError, image_key
from fedclip.extract.encoders.base import TextEncoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.encoders.transformers import TransformersEncoder, load_encoder

transformers = pytest.importorskip("transformers")

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "of", "picture", "##s", "!")
TEXTS = ("a dog", "a picture of a cat!", "dogs", "unknown words", " ".join(["cat"] * 50))

Change = Callable[[Path], None]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny BERT with seeded weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert") / "tiny"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.BertModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """Give a function that copies the tiny BERT with other files."""

    def change(files: Mapping[str, Any], without: str = "") -> Path:
        folder = tmp_path / "changed"
        folder.mkdir()
        for path in bert.iterdir():
            if path.name != without:
                (folder / path.name).write_bytes(path.read_bytes())
        for name, value in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(value))
        return folder

    return change


def load(
    folder: Path, pretrained: str | None = None, pooling: str | None = None
) -> TransformersEncoder:
    name = EncoderName.of(f"hf:{folder}", pretrained, pooling=pooling)
    return load_encoder(name, torch.device("cpu"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(FedclipError) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def theirs(folder: Path, pooling: str, context: int = 40) -> Any:
    """Pool transformers' own output as sentence-transformers does."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(
        list(TEXTS), padding=True, truncation=True, max_length=context, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return (hidden[:, 0] if pooling == "cls" else mean).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_transformers_own_pooled_output(bert: Path, pooling: str) -> None:
    encoder = load(bert, pooling=pooling)
    assert isinstance(encoder, TextEncoder)
    expected = theirs(bert, pooling)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, rtol=0, atol=1e-5)
    samples = torch.stack([encoder.decode(text.encode()) for text in TEXTS])
    np.testing.assert_allclose(encoder.launch(samples).numpy(), expected, rtol=0, atol=1e-5)


def test_a_text_s_vector_does_not_depend_on_the_texts_beside_it(bert: Path) -> None:
    encoder = load(bert)
    samples = torch.stack([encoder.decode(text.encode()) for text in TEXTS])
    blank = torch.stack([encoder.blank] * len(TEXTS))
    together = encoder.launch(samples).numpy()
    for row in range(len(TEXTS)):
        alone = blank.clone()
        alone[0] = samples[row]
        vectors = encoder.launch(alone).numpy()
        assert np.array_equal(vectors[0], together[row])
        assert not vectors[1:].any()


def test_a_folder_of_sentence_transformers_says_how_to_pool_and_how_long(
    changed: Callable[..., Path],
) -> None:
    modules = [{"type": f"sentence_transformers.models.{each}"} for each in ("Transformer",)]
    folder = changed(
        {
            "modules.json": [*modules, {"type": "x.Pooling"}, {"type": "x.Normalize"}],
            "1_Pooling/config.json": {"pooling_mode_cls_token": True},
            "sentence_bert_config.json": {"max_seq_length": 7},
        }
    )
    encoder = load(folder)
    assert (encoder.facts["pooling"], encoder.facts["context"]) == ("cls", 7)
    expected = theirs(folder, "cls", context=7)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, rtol=0, atol=1e-5)
    assert load(folder, pooling="mean").facts["pooling"] == "mean"


def test_the_context_is_the_least_of_what_the_files_allow(
    bert: Path, changed: Callable[..., Path]
) -> None:
    assert load(bert).facts["context"] == 40
    config = json.loads((bert / "config.json").read_text())
    folder = changed({"config.json": {**config, "max_position_embeddings": 12}})
    assert load(folder, pretrained="random").facts["context"] == 12


def test_the_key_names_weights_pooling_and_tokenizer_and_no_folder(
    bert: Path, changed: Callable[..., Path]
) -> None:
    key = image_key(load(bert).facts)
    assert image_key(load(changed({})).facts) == key
    assert image_key(load(bert, pooling="cls").facts) != key
    assert image_key(load(bert, pretrained="random").facts) != key
    assert str(bert.parent) not in json.dumps(load(bert).facts.groups)
    random = load(bert, pretrained="random").facts
    assert random["random_weights"]
    assert image_key(load(bert, pretrained="random").facts) == image_key(random)


def test_the_decoder_can_be_sent_to_other_processes(bert: Path) -> None:
    decode = load(bert).decode
    copy = pickle.loads(pickle.dumps(decode))
    assert torch.equal(copy(b"a dog"), decode(b"a dog"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"  \n", "is empty"), (b"\xff\xfe", "is not UTF-8")],
)
def test_what_is_no_text_cannot_be_decoded(bert: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load(bert).decode(content)


def test_what_cannot_be_loaded_is_refused_in_a_line(
    bert: Path, changed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = changed({}, without="model.safetensors")
    assert "has no model.safetensors" in refusal(folder)
    assert load(folder, pretrained="random").facts["random_weights"]
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    (folder / "modules.json").write_text('[{"type": "x.Dense"}]')
    (folder / "config.json").write_bytes((bert / "config.json").read_bytes())
    assert "has a part Dense" in refusal(folder)
    (folder / "modules.json").write_text("[")
    assert "modules.json: is not JSON" in refusal(folder)
    (folder / "modules.json").write_text('["x.Transformer"]')
    assert "modules.json: is not a list of parts" in refusal(folder)
    with pytest.raises(FedclipError, match="leave out --pretrained"):
        EncoderName.of(f"hf:{bert}", "openai")
    with pytest.raises(FedclipError, match="--pooling cls"):
        EncoderName.of("ViT-B-32", None, pooling="cls")


def test_weights_of_another_architecture_are_refused(
    bert: Path, changed: Callable[..., Path]
) -> None:
    config = json.loads((bert / "config.json").read_text())
    assert "lack" in refusal(changed({"config.json": {**config, "num_hidden_layers": 3}}))


def test_code_of_a_repository_is_not_run(
    bert: Path, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads((bert / "config.json").read_text())
    auto = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    folder = changed({"config.json": {**config, "model_type": "own", "auto_map": auto}})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in refusal(folder)
    assert not (tmp_path / "ran").exists()
