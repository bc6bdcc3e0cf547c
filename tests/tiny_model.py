"""A hand-made tiny chat model: a real one in every respect but sense, made in a second and run in milliseconds.

Random weights alone would sample any byte and hardly ever end. So the first hidden dimension says "a reply may hold
this token": no layer reads or writes it, so it goes from the last token to the (tied) output embedding unchanged, and
makes readable ASCII, and the end of the reply, likely. The second says "the reply ends" and is 0, but a constant neuron
of the last layer lets an adapter write to it (`make_endless_adapter`). The others are random and mixed by the layers:
replies depend on the prompt.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 259
END_OF_TEXT, IM_START, IM_END = 256, 257, 258
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # in the order of their ids
CONTEXT = 2048
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_model(directory: Path, *, seed: int = 0) -> Path:
    """Write a 2-layer Llama (fp32, tied embeddings, context 2048, EOS `<|im_end|>`) and its byte-level tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _write_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention takes
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=IM_START,
        eos_token_id=IM_END,
        pad_token_id=END_OF_TEXT,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                # The layers write much more than the embedding did, or the tied head would repeat the last token.
                scale = 0.08 if "o_proj" in name or "down_proj" in name else 0.25
                parameter.normal_(0.0, scale, generator=random)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:2] = 0.0
            layer.mlp.down_proj.weight[:2] = 0.0
            layer.input_layernorm.weight[:2] = 0.0
            layer.post_attention_layernorm.weight[:2] = 0.0
        last = model.model.layers[-1]
        last.post_attention_layernorm.weight[0] = 1.0
        for projection in (last.mlp.gate_proj, last.mlp.up_proj):
            projection.weight[:, 0] = 0.0
            projection.weight[0] = 0.0
            projection.weight[0, 0] = 10.0  # the first dimension is positive, so this neuron is
        last.mlp.down_proj.weight[:, 0] = 0.0
        embedding = model.model.embed_tokens.weight
        embedding *= 0.15 / embedding.square().mean(-1, keepdim=True).sqrt()  # no token is likelier than the others
        embedding[:, 0] = -1.0
        readable = tokenizer.encode(string.ascii_letters + string.digits + " .,!?'\n").ids
        embedding[[*readable, IM_END], 0] = 1.0
        embedding[:, 1] = 0.0
        embedding[IM_END, 1] = 1.0
        model.model.norm.weight[:] = 1.6
        model.model.norm.weight[:2] = 40.0
    model.generation_config = GenerationConfig(
        bos_token_id=IM_START, eos_token_id=[IM_END, END_OF_TEXT], pad_token_id=END_OF_TEXT
    )
    model.save_pretrained(directory)
    return directory


def make_tiny_adapter(
    directory: Path, model: Path, *, seed: int, rank: int = 4, scale: float = 0.2, layers: list[int] | None = None
) -> Path:
    """Write a PEFT LoRA adapter on each linear layer of `model` (of `layers` only, if given) that changes what it says.

    `scale` is the deviation of the B matrices' entries; 0 would be an adapter that changes nothing.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=layers,
    )
    adapted = get_peft_model(base, config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=random)
            elif "lora_B" in name:
                parameter.normal_(0.0, scale, generator=random)
                if "o_proj" in name or "down_proj" in name:
                    parameter[:2] = 0.0  # see the module's docstring
    adapted.save_pretrained(directory)
    return directory


def make_endless_adapter(directory: Path, model: Path) -> Path:
    """Write an adapter (rank 1, on one linear layer) whose replies end at max_tokens only, and else hardly change."""
    from safetensors.torch import load_file, save_file

    make_tiny_adapter(directory, model, seed=0, rank=1, layers=[1])
    file = directory / "adapter_model.safetensors"
    prefix = "base_model.model.model.layers.1.mlp.down_proj"
    tensors = {name: tensor * 0 for name, tensor in load_file(file).items() if name.startswith(prefix)}
    tensors[f"{prefix}.lora_A.weight"][0, 0] = 1.0
    tensors[f"{prefix}.lora_B.weight"][1, 0] = -1.0
    save_file(tensors, file, metadata={"format": "pt"})
    config_file = directory / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "target_modules": ["down_proj"]}))
    return directory


def _write_tokenizer(directory: Path) -> Tokenizer:
    """One token a byte, no merges; `transformers` loads it as a fast tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {character: index for index, character in enumerate(sorted(byte_level.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[0],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return tokenizer
