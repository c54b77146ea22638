"""Decode steps and prefill of Hugging Face transformers with random weights: what bench/decode.ts compares a whole model with.

    python3 hugging_face_decode.py [--synthetic llama-3.1-8b] [--contexts 1024,...] [--batches 8x32768,...] [--prefill 32768] > FILE

The shapes are those of lib/models/synthetic.ts, weights bf16, nothing is downloaded. The cache of a decode case is filled with random keys and values, as there;
it is a DynamicCache, the one that generate() takes. A step is one forward call and an argmax, timed with a synchronization around it: median of ten after two.
Attention is PyTorch's scaled_dot_product_attention ("sdpa") and plain matrix products ("eager"); prefill is "sdpa" with the logits of the last token alone.
Prints one JSON object a line, the first one about the card; a case that fails, as by memory, has ms null and the error. Written for transformers 5 and torch 2.11.
"""
import argparse
import json
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

torch.set_grad_enabled(False)

# vocabulary, hidden, intermediate, layers, heads, KV heads, channels of a head (hidden / heads), RoPE base, tied, model
SHAPES = {
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, 500000.0, False, (LlamaConfig, LlamaForCausalLM)),
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, 64, 500000.0, True, (LlamaConfig, LlamaForCausalLM)),
    "qwen2.5-7b": (152064, 3584, 18944, 28, 28, 4, 128, 1e6, False, (Qwen2Config, Qwen2ForCausalLM)),
}


def build(name, contexts):
    """The model on the GPU: norms 1, everything else N(0, 0.02^2)."""
    vocabulary, hidden, intermediate, layers, heads, kv_heads, dim, theta, tied, (config_class, model_class) = SHAPES[name]
    config = config_class(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, rope_theta=theta, tie_word_embeddings=tied, rms_norm_eps=1e-5,
        max_position_embeddings=max(131072, 2 * max(contexts)),
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = model_class(config)
    finally:
        torch.set_default_dtype(default)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02)
    return model.eval(), (layers, kv_heads, dim, vocabulary)


def median(times):
    return sorted(times)[len(times) // 2]


def timed(call):
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3, result


def decode(model, sizes, batch, tokens, steps=12):
    layers, kv_heads, dim, vocabulary = sizes
    cache = DynamicCache()
    for layer in range(layers):
        shape = (batch, kv_heads, tokens, dim)
        keys, values = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        cache.update(keys, values, layer)
        del keys, values
    ids = torch.randint(0, vocabulary, (batch, 1), device="cuda")
    times = []
    for _ in range(steps):
        milliseconds, ids = timed(lambda: model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True))
        times.append(milliseconds)
    return median(times[2:]), times


def prefill(model, sizes, tokens):
    ids = torch.randint(0, sizes[3], (1, tokens), device="cuda")
    times = [timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1))[0] for _ in range(4 if tokens <= 65536 else 2)]
    return median(times[1:]), times


def case(kind, arguments, implementation, batch, tokens, call):
    line = {"kind": kind, "model": arguments.synthetic, "attention": implementation, "batch": batch, "tokens": tokens}
    torch.cuda.reset_peak_memory_stats()
    try:
        milliseconds, times = call()
        line |= {"ms": milliseconds, "times": [round(x, 4) for x in times]}
    except torch.cuda.OutOfMemoryError as error:  # other errors end the run
        line |= {"ms": None, "error": str(error).splitlines()[0][:200]}
    line["peak_bytes"] = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    print(json.dumps(line), flush=True)


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--synthetic", default="llama-3.1-8b", choices=SHAPES)
    parser.add_argument("--contexts", default="1024,8192,32768,131072,196608", type=numbers)
    parser.add_argument("--batches", default="8x32768,32x8192", help="sequences x tokens, sdpa alone")
    parser.add_argument("--prefill", default="2048,32768", type=numbers)
    parser.add_argument("--attention", default="sdpa,eager")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    batches = [tuple(map(int, entry.split("x"))) for entry in arguments.batches.split(",") if entry]
    model, sizes = build(arguments.synthetic, [*arguments.contexts, *arguments.prefill, *(tokens for _, tokens in batches), 1024])
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    for implementation in arguments.attention.split(","):
        model.set_attn_implementation(implementation)
        for tokens in arguments.contexts:
            case("decode", arguments, implementation, 1, tokens, lambda: decode(model, sizes, 1, tokens))
        if implementation != "sdpa":
            continue
        for batch, tokens in batches:
            case("decode", arguments, implementation, batch, tokens, lambda: decode(model, sizes, batch, tokens))
        for tokens in arguments.prefill:
            case("prefill", arguments, implementation, 1, tokens, lambda: prefill(model, sizes, tokens))


if __name__ == "__main__":
    main()
