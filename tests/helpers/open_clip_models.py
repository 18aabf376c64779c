"""Makes models of open_clip with random weights, and what they compute. It runs where open_clip is installed.

    python open_clip_models.py FOLDER

Every folder in FOLDER with `open_clip_config.json`, `images.npy` (N, C, S, S) in [0, 1] and `tokens.npy` (N, L) gets
`open_clip_model.safetensors`, `image.npy` and `text.npy`: the embeddings before their L2 normalisation. Relative names
of text models in a configuration are folders in FOLDER.
"""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file


def made(configuration: dict, folder: Path) -> torch.nn.Module:
    settings = {name: value for name, value in configuration.items() if name != "custom_text"}
    text = dict(settings["text_cfg"])
    if "hf_model_name" in text:
        text |= {"hf_model_name": str(folder / text["hf_model_name"]), "hf_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if configuration.get("custom_text") else open_clip.CLIP
    model = kind(**settings | {"text_cfg": text}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and positions begin as ones and zeros, which hides mistakes
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write(folder: Path) -> None:
    torch.manual_seed(0)
    described = json.loads((folder / "open_clip_config.json").read_text())
    model = made(described["model_cfg"], folder.parent)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    mean, std = (torch.tensor(described["preprocess_cfg"][name])[:, None, None] for name in ("mean", "std"))
    images, tokens = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("images", "tokens"))
    with torch.no_grad():
        np.save(folder / "image.npy", model.encode_image((images - mean) / std).numpy())
        np.save(folder / "text.npy", model.encode_text(tokens).numpy())


WEIGHTS = "open_clip_model.safetensors"

if __name__ == "__main__":
    for place in sorted(Path(sys.argv[1]).glob("*/open_clip_config.json")):
        write(place.parent)
