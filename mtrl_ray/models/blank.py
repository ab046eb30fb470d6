"""A Llama with random weights, and a tokenizer trained on conversations."""

from pathlib import Path

from mtrl_ray.dialogue.conversation import Conversation
from mtrl_ray.settings.tree import ModelSettings

HEAD_SIZE, WIDTH = 32, 128
"""The first is the smallest that vLLM's CPU attention kernels take."""


def blank_model(folder: Path, model: ModelSettings, spoken: list[Conversation]) -> None:
    """Write a tokenizer trained on the conversations, and a Llama with random weights, into an empty folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mtrl_ray.models.tiny_tokenizer import train_tokenizer

    texts = [turn.text for conversation in spoken for turn in conversation.turns]
    texts += [turn.sent for conversation in spoken for turn in conversation.turns if turn.sent]
    tokenizer = train_tokenizer(texts, model.vocabulary)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(model.warm_start.seed)
    heads = WIDTH // HEAD_SIZE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=model.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=model.context_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
