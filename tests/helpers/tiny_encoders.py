"""Tiny pretrained encoders with random weights, in the folders that other programs write."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WIDTH = 32  # of the vectors of all encoders but those with stages
SIZE = 32  # pixels per side of the images of all image encoders
WORDS = "no acute findings the heart is enlarged left right lung pleural effusion normal chest a in of small".split()
POSITIONS = 16  # tokens that text encoders read
STAGES: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 24]}
LAYERS: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {  # class, configuration
    "vit": ("ViTModel", {**LAYERS, "image_size": SIZE, "patch_size": 8}),
    "deit": ("DeiTModel", {**LAYERS, "image_size": SIZE, "patch_size": 8}),
    "dinov2": ("Dinov2Model", {**LAYERS, "image_size": SIZE, "patch_size": 8}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {**LAYERS, "image_size": SIZE, "patch_size": 8}),
    "dinov3_vit": ("DINOv3ViTModel", {**LAYERS, "image_size": SIZE, "patch_size": 8, "num_register_tokens": 2}),
    "dinov3_convnext": ("DINOv3ConvNextModel", {**STAGES, "image_size": SIZE}),
    "convnext": ("ConvNextModel", {**STAGES, "image_size": SIZE}),
    "convnextv2": ("ConvNextV2Model", {**STAGES, "image_size": SIZE}),
    "resnet": ("ResNetModel", {**STAGES, "embedding_size": 8}),
    "swin": ("SwinModel", {
        "image_size": SIZE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2],
        "window_size": 2,
    }),
    "clip": ("CLIPModel", {}),
    "siglip": ("SiglipModel", {}),
    "clip_vision_model": ("CLIPVisionModel", {**LAYERS, "image_size": SIZE, "patch_size": 8}),
    "siglip_vision_model": ("SiglipVisionModel", {**LAYERS, "image_size": SIZE, "patch_size": 8}),
}  # fmt: skip
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {**LAYERS, "max_position_embeddings": POSITIONS}),
    "roberta": ("RobertaModel", {**LAYERS, "max_position_embeddings": POSITIONS + 1, "pad_token_id": 0}),
    "distilbert": ("DistilBertModel", {
        "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": POSITIONS,
    }),
    "mpnet": ("MPNetModel", {**LAYERS, "max_position_embeddings": POSITIONS + 2}),
    "electra": ("ElectraModel", {**LAYERS, "embedding_size": WIDTH, "max_position_embeddings": POSITIONS}),
    "deberta-v2": ("DebertaV2Model", {
        **LAYERS, "max_position_embeddings": POSITIONS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    }),
    "modernbert": ("ModernBertModel", {**LAYERS, "max_position_embeddings": POSITIONS, "pad_token_id": 0}),
    "xlm-roberta": ("XLMRobertaModel", {**LAYERS, "max_position_embeddings": POSITIONS + 1, "pad_token_id": 0}),
    "clip": ("CLIPModel", {}),
    "siglip": ("SiglipModel", {}),
    "clip_text_model": ("CLIPTextModel", {**LAYERS, "max_position_embeddings": POSITIONS}),
    "siglip_text_model": ("SiglipTextModel", {**LAYERS, "max_position_embeddings": POSITIONS}),
}  # fmt: skip
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}


def tiny_image_folder(family: str, path: Path) -> Path:
    """Write an image encoder of a family in `IMAGES`, with the settings of its images. Returns the folder."""
    _save(family, *IMAGES[family], path)
    settings = {
        "do_resize": True, "size": {"height": SIZE, "width": SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3],
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def tiny_text_folder(family: str, path: Path) -> Path:
    """Write a text encoder of a family in `TEXTS`, or a "sentence-transformers" one, with a tokenizer of few words."""
    sentences = family == "sentence-transformers"
    _save(family, *TEXTS["bert" if sentences else family], path)
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(SPECIAL))
    if sentences:
        add_modules(path, ["Pooling", "Normalize"], {"pooling_mode_mean_tokens": True})
    return path


def add_modules(path: Path, names: list[str], pooling: dict[str, Any]) -> None:
    """Make a folder one of sentence-transformers, whose modules behind the transformer have these names."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, name in enumerate(names, 1):
        place = f"{number}_{name}"
        (path / place).mkdir(exist_ok=True)
        modules.append(
            {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{name}"}
        )
        if name == "Pooling":
            (path / place / "config.json").write_text(json.dumps(pooling))
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": POSITIONS, "do_lower_case": False}))


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer of `WORDS` and their letters, which frames texts as BERT does."""
    letters = sorted({letter for word in WORDS for letter in word})
    tokens = ["[PAD]", "[UNK]", "[CLS]", *WORDS, *letters, *(f"##{letter}" for letter in letters), "[SEP]"]
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    special = [(token, numbers[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def _save(family: str, network: str, settings: dict[str, Any], path: Path) -> None:
    """Save a network with random weights, the same each time."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = getattr(transformers, network)
    size = tiny_tokenizer().get_vocab_size()
    if family in ("clip", "siglip"):
        image, text = (
            dict(table[f"{family}_{half}_model"][1]) for table, half in ((IMAGES, "vision"), (TEXTS, "text"))
        )
        text |= _of_texts(size)
        if family == "siglip":
            text["projection_size"] = WIDTH
        settings = {"vision_config": image, "text_config": text}
        settings |= {"projection_dim": 20} if family == "clip" else {}
    elif network in {name for name, _ in TEXTS.values()} or family in TEXTS:
        settings = settings | (_of_texts(size) if family.endswith("_text_model") else {"vocab_size": size})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**settings))
        for value in model.parameters():
            if value.dim() > 1:  # initial weights are so small that all images would look the same
                torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(path)


def _of_texts(size: int) -> dict[str, Any]:
    return {"vocab_size": size, "bos_token_id": 2, "eos_token_id": size - 1, "pad_token_id": 0}
