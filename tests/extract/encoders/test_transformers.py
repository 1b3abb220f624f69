"""Text models of transformers: its own pooled output, what identifies them, what is refused."""

import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
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


def parts(*names: str, pooling: str = "1_Pooling") -> list[dict[str, str]]:
    """Make a modules.json as sentence-transformers does."""
    paths = ("", pooling, *(f"{number}_{name}" for number, name in enumerate(names[2:], 2)))
    return [
        {"path": path, "type": f"sentence_transformers.models.{name}"}
        for path, name in zip(paths, names, strict=False)
    ]


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"], "pooling_mode_cls_token": True}, "mean"),
        ({"word_embedding_dimension": 16}, "mean"),
    ],
    ids=["cls", "mean", "newer", "newer list", "default"],
)
def test_a_folder_of_sentence_transformers_says_how_to_pool_and_how_long(
    changed: Callable[..., Path], config: dict[str, Any], pooling: str
) -> None:
    folder = changed(
        {
            "modules.json": parts("Transformer", "Pooling", "Normalize", pooling="a_folder"),
            "a_folder/config.json": config,
            "1_Pooling/config.json": {"pooling_mode_max_tokens": True},
            "sentence_roberta_config.json": {"max_seq_length": 7},
        }
    )
    encoder = load(folder)
    assert (encoder.facts["pooling"], encoder.facts["context"]) == (pooling, 7)
    expected = theirs(folder, pooling, context=7)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, rtol=0, atol=1e-5)
    other = "mean" if pooling == "cls" else "cls"
    assert load(folder, pooling=other).facts["pooling"] == other
    assert folder / "a_folder" / "config.json" in encoder.sources


def test_texts_are_stripped_and_turned_to_lower_case_if_the_folder_says_so(
    changed: Callable[..., Path],
) -> None:
    folder = changed(
        {
            "modules.json": parts("Transformer", "Pooling"),
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        }
    )
    transformers.BertTokenizerFast(
        str(folder / "vocab.txt"), model_max_length=40, do_lower_case=False
    ).save_pretrained(folder)
    encoder = load(folder)
    upper, lower = encoder.encode_texts(["A DOG", " a dog\n"])
    assert not np.allclose(upper, lower)
    np.testing.assert_array_equal(lower, encoder.encode_texts(["a dog"])[0])
    key = image_key(encoder.facts)
    sentence = {"max_seq_length": 40, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentence))
    encoder = load(folder)
    np.testing.assert_array_equal(encoder.encode_texts(["A DOG"])[0], lower)
    assert image_key(encoder.facts) != key


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"modules.json": parts("Transformer", "Pooling", "Dense")}, "has a part Dense after"),
        (
            {"modules.json": parts("Transformer", "Normalize", "Pooling")},
            "has Normalize and Pooling after the network, not one Pooling",
        ),
        (
            {"modules.json": parts("Transformer", "Pooling", "Pooling")},
            "has Pooling and Pooling after",
        ),
        ({"modules.json": parts("Transformer")}, "has nothing after the network"),
        (
            {"1_Pooling/config.json": {"pooling_mode": "max"}},
            "1_Pooling/config.json: pools by max; pass --pooling mean or cls",
        ),
        (
            {"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}},
            "pools by cls and mean",
        ),
        ({"1_Pooling/config.json": {"pooling_mode_lasttoken": True}}, "pools by lasttoken"),
        (
            {
                "config_sentence_transformers.json": {
                    "prompts": {"query": "query: "},
                    "default_prompt_name": "query",
                }
            },
            "puts the prompt 'query: ' before every text",
        ),
    ],
)
def test_a_folder_that_encodes_in_another_way_is_refused_unless_the_pooling_is_set(
    changed: Callable[..., Path], files: dict[str, Any], reason: str
) -> None:
    usual = {
        "modules.json": parts("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    }
    folder = changed({**usual, **files})
    message = refusal(folder)
    assert reason in message
    assert "pass --pooling" in message
    assert load(folder, pooling="cls").facts["pooling"] == "cls"


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ([{"type": "x.Transformer", "path": "0_Transformer"}], "in '0_Transformer', not with"),
        ([{"type": "x.CLIPModel", "path": ""}], "begins with CLIPModel"),
        ([*parts("Transformer"), {"type": "x.Pooling", "path": "../p"}], "outside of the folder"),
        ([], "is not a list of parts"),
    ],
)
def test_modules_that_cannot_be_understood_are_refused(
    changed: Callable[..., Path], modules: list[Any], reason: str
) -> None:
    assert reason in refusal(changed({"modules.json": modules}))


def save_bpe(folder: Path, **special: str) -> None:
    """Save a tokenizer of bytes, as RoBERTa's and GPT-2's are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(TEXTS, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=trained, **special).save_pretrained(
        folder
    )


SMALL = {"vocab_size": 300, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "context"),
    [
        # RoBERTa numbers positions from 2 on, so that it has 18 and not 20.
        ("RobertaConfig", 18),
        ("DistilBertConfig", 20),
        ("GPT2Config", 20),
    ],
)
def test_families_with_other_names_for_their_sizes_are_encoded_up_to_their_longest_text(
    tmp_path: Path, config: str, context: int
) -> None:
    sizes = {
        "RobertaConfig": {"hidden_size": 16, "intermediate_size": 16},
        "DistilBertConfig": {"dim": 16, "hidden_dim": 16},
        "GPT2Config": {"n_embd": 16},
    }
    made = getattr(transformers, config)(
        **{**SMALL, **sizes[config], "max_position_embeddings": 20}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(made).save_pretrained(tmp_path)
    special = {"eos_token": "</s>"} if config == "GPT2Config" else {"pad_token": "<pad>"}
    save_bpe(tmp_path, **special)
    encoder = load(tmp_path)
    assert encoder.facts["context"] == context
    expected = theirs(tmp_path, "mean", context)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, rtol=0, atol=1e-5)


def test_models_of_other_kinds_are_refused_in_a_line(bert: Path, tmp_path: Path) -> None:
    for config, options in (
        ("ViTConfig", {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}),
        ("CLIPConfig", {}),
        ("T5Config", {"d_model": 16, "d_ff": 16, "num_layers": 1}),
    ):
        folder = tmp_path / config
        folder.mkdir()
        getattr(transformers, config)(**options).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((bert / name).read_bytes())
        message = refusal(folder, pretrained="random")
        assert "does not encode texts" in message or "cannot be loaded as a text model" in message


def test_a_tokenizer_that_cannot_pad_is_refused_in_a_line(
    changed: Callable[..., Path],
) -> None:
    folder = changed({}, without="tokenizer_config.json")
    save_bpe(folder)
    assert "does not encode texts" in refusal(folder)


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
    (folder / "config.json").write_bytes((bert / "config.json").read_bytes())
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


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_weights_of_more_layers_than_the_config_has_are_refused(
    bert: Path, changed: Callable[..., Path], prefix: str
) -> None:
    config = json.loads((bert / "config.json").read_text())
    folder = changed({"config.json": {**config, "num_hidden_layers": 1}})
    file = folder / "model.safetensors"
    tensors = {f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    layer = f"{prefix}encoder.layer.1.attention"
    assert refusal(folder) == (
        f"{folder}: has {layer}.output.LayerNorm.bias, {layer}.output.LayerNorm.weight, "
        f"{layer}.output.dense.bias and 13 more, which the architecture lacks; get config.json and "
        "weights again"
    )


def test_heads_and_constants_beside_the_network_s_own_weights_are_left_alone(
    bert: Path, changed: Callable[..., Path]
) -> None:
    file = changed({}) / "model.safetensors"
    tensors = load_file(file)
    others = {
        "pooler.dense.weight": torch.ones(16, 16),
        "classifier.weight": torch.ones(2, 16),
        "cls.predictions.bias": torch.ones(11),
        "embeddings.position_ids": torch.arange(64)[None],
        "encoder.layer.0.attention.self.masked_bias": torch.tensor(-1e4),
    }
    save_file({**tensors, **others}, file, metadata={"format": "pt"})
    expected = load(bert).encode_texts(TEXTS)
    np.testing.assert_array_equal(load(file.parent).encode_texts(TEXTS), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor * math.nan, "has NaN or Inf in encoder.layer.0"),
        (lambda tensor: tensor.to(torch.int8), "has I8 in place of floats in encoder.layer.0"),
    ],
)
def test_weights_that_are_quantized_or_not_finite_are_refused(
    changed: Callable[..., Path], change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    file = changed({}) / "model.safetensors"
    tensors = load_file(file)
    name = next(each for each in tensors if each.endswith("layer.0.attention.self.query.weight"))
    save_file({**tensors, name: change(tensors[name])}, file, metadata={"format": "pt"})
    assert reason in refusal(file.parent)


def test_a_folder_whose_tokenizer_has_no_words_is_refused(changed: Callable[..., Path]) -> None:
    folder = changed({}, without="tokenizer.json")
    for rest in ("vocab.txt", "tokenizer_config.json"):
        (folder / rest).unlink(missing_ok=True)
    assert "its tokenizer cannot be loaded (" in refusal(folder)


def test_code_of_a_repository_is_not_run(
    bert: Path, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = json.loads((bert / "config.json").read_text())
    auto = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    folder = changed({"config.json": {**config, "model_type": "own", "auto_map": auto}})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in refusal(folder)
    assert not (tmp_path / "ran").exists()
