"""Make a language model for tests: `python -m real.tiny_model FOLDER`, in the folder tests.

A Llama of 10 MB with random weights, so large ones that its tokens depend on the whole prompt. Needs torch, safetensors
and tokenizers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from real.tiny_words import WORDS

SEED = 4
SPREAD = 0.15  # of weights: with less, a prompt would hardly matter
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


def weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(SEED)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * SPREAD

    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    head = hidden // CONFIG["num_attention_heads"]
    keys = head * CONFIG["num_key_value_heads"]
    made = {"model.embed_tokens.weight": matrix(WORDS, hidden), "lm_head.weight": matrix(WORDS, hidden)}
    made["model.norm.weight"] = torch.ones(hidden)
    for number in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys), ("o_proj", hidden)):
            made[f"{layer}self_attn.{name}.weight"] = matrix(rows, hidden)
        made[f"{layer}mlp.gate_proj.weight"] = matrix(inner, hidden)
        made[f"{layer}mlp.up_proj.weight"] = matrix(inner, hidden)
        made[f"{layer}mlp.down_proj.weight"] = matrix(hidden, inner)
        made[f"{layer}input_layernorm.weight"] = torch.ones(hidden)
        made[f"{layer}post_attention_layernorm.weight"] = torch.ones(hidden)
    return made


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w0", "eos_token": "w1", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
