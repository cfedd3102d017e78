"""Turn a GGUF file into the Hugging Face folder that vLLM loads: `python -m guard.demo.convert_gguf FILE.gguf FOLDER`.

Needs the packages `gguf` and `accelerate`, with which Transformers reads the format. Transformers does not save a model
that it read from GGUF, so the weights, no longer quantised, go into a fresh model of the same class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(source: Path, folder: Path) -> None:
    """Write weights (bfloat16), configuration, tokenizer and chat template of `source` into `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    convert(given.source, given.folder)


if __name__ == "__main__":
    main()
