"""open_clip's families besides CLIP: its own vectors of its own pixels and tokens."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fedclip.cache import FedclipError
from fedclip.extract.encoders.openclip import OpenClipEncoder, load_encoder
from fedclip.extract.encoders.spec import EncoderName

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CONFIG = "open_clip_config.json"
PROMPTS = ("a picture of a Dog", "a sketch of a cat!", "giraffes", "the dog " * 20)
TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
TIMM = {"image_size": 64, "timm_model_pretrained": False}

# Small architectures with what is particular to each family.
FAMILIES: dict[str, dict[str, Any]] = {
    "SigLIP": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            **TIMM,
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **TEXT,
            "vocab_size": 64,
            "hf_tokenizer_name": "owner/tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "CoCa": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "vocab_size": 49408, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "vocab_size": 49408, "attn_pooler_heads": 2},
    },
    "EVA": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            **TIMM,
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": {**TEXT, "vocab_size": 49408},
    },
    "ConvNeXt": {
        "embed_dim": 32,
        "vision_cfg": {
            **TIMM,
            "timm_model_name": "test_convnext",
            "timm_pool": "",
            "timm_proj": "linear",
            "timm_drop": 0.1,
            "timm_drop_path": 0.1,
        },
        "text_cfg": {**TEXT, "vocab_size": 49408},
    },
    "RoBERTa": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "hf_model_name": "the folder itself",
            "hf_tokenizer_name": "owner/tokenizer",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
            "context_length": 16,
        },
    },
}


def save_tokenizer(folder: Path) -> None:
    """Train a tokenizer of pieces, as SigLIP's is, on a few words."""
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    trained.train_from_iterator([text.lower() for text in PROMPTS] * 10, trainer)
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", trained.token_to_id("</s>"))]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str], Path]:
    """Give a function that saves a small model of a family with seeded weights."""

    def make(family: str) -> Path:
        folder = tmp_path / family
        folder.mkdir()
        config = json.loads(json.dumps(FAMILIES[family]))
        if "hf_tokenizer_name" in config["text_cfg"]:
            save_tokenizer(folder)
        if "hf_model_name" in config["text_cfg"]:
            config["text_cfg"]["hf_model_name"] = str(folder)
            transformers.RobertaConfig(
                vocab_size=64,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=20,
            ).save_pretrained(folder)
        preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.25], "resize_mode": "squash"}
        content = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / CONFIG).write_text(json.dumps(content))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            place = f"local-dir:{folder}"
            model = open_clip.create_model(place, load_weights=False, pretrained_text=False)
        # open_clip does not initialize CoCa's text_decoder.text_projection.
        finite = {name: tensor.nan_to_num(0, 0, 0) for name, tensor in model.state_dict().items()}
        save_file(finite, folder / "open_clip_model.safetensors")
        return folder

    return make


def load(folder: Path) -> OpenClipEncoder:
    return load_encoder(EncoderName.of(f"local-dir:{folder}", None), torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_open_clip_s_own_of_its_own_pixels_and_tokens(
    save: Callable[[str], Path], family: str
) -> None:
    folder = save(family)
    place = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(place, pretrained_text=False)
    model.eval()
    tokenize: Any = open_clip.get_tokenizer(place)
    pixels, contents = [], []
    for seed, size in enumerate(((200, 240), (90, 31), (50, 50))):
        noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "png")
        contents.append(file.getvalue())
        pixels.append(preprocess(Image.fromarray(noise)))
    with torch.inference_mode():
        images = model.encode_image(torch.stack(pixels), normalize=False).numpy()
        texts = model.encode_text(tokenize(list(PROMPTS)), normalize=False).numpy()
    encoder = load(folder)
    ours = encoder.launch(torch.stack([encoder.decode(content) for content in contents])).numpy()
    np.testing.assert_allclose(ours, images, rtol=0, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_texts(PROMPTS), texts, rtol=0, atol=1e-4)
    assert encoder.logit_scale == float(model.logit_scale.exp())
    distances = np.abs(texts[:, None] - texts[None]).max(-1)
    assert np.sort(distances, axis=1)[:, 1].min() > 1e-3  # the texts differ


def test_the_bias_of_siglip_changes_no_probability_and_no_class(
    save: Callable[[str], Path],
) -> None:
    folder = save("SigLIP")
    encoder = load(folder)
    model: Any = encoder.model
    pixels = torch.randn(3, *encoder.blank.shape, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokenizer(list(PROMPTS))
    with torch.inference_mode():
        logits, _ = model.get_logits(pixels, tokens)
    images, texts = encoder.launch(pixels).numpy(), encoder.encode_texts(PROMPTS)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts)]
    ours = torch.from_numpy(encoder.logit_scale * unit[0] @ unit[1].T)
    torch.testing.assert_close(ours - 10, logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.softmax(1), logits.softmax(1), rtol=0, atol=1e-5)


def test_code_that_a_text_tower_s_config_names_is_neither_run_nor_asked_about(
    save: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = save("RoBERTa")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": auto})
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked: list[str] = []

    def answer(text: str) -> str:
        asked.append(text)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(FedclipError, match="cannot be loaded as weights"):
        load(folder)
    assert not asked
    assert not (tmp_path / "ran").exists()
