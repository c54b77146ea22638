"""bf16 decode and prefill attention of PyTorch, the best of its implementations: what vecinfer_cuda's attention is compared with.

    python3 bf16_attention.py [--prefill] [--heads 32/8] [--dim 128] [batch x tokens ...]

Decode (one query a sequence): scaled_dot_product_attention with flash, with cuDNN, and with flash over the query heads of a KV head packed as rows.
Prefill (causal): flash and cuDNN. Calls are captured in a CUDA graph that goes through buffers larger than L2 in turn, and timed by CUDA events; median and spread
(10th to 90th percentile) of the repeats. The first line has the card and the read bandwidth measured. Prints one JSON object a line.
"""
import argparse
import json

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROTATE_BYTES = 400e6  # several times the L2 of any card


def time_graph(calls, repeats=11):
    """Milliseconds of one call: (median, 10th percentile, 90th percentile). calls: functions over different buffers."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        times = []
        for repeat in range(repeats + 2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if repeat >= 2:
                times.append(begin.elapsed_time(end) / len(calls))
    times.sort()
    return times[len(times) // 2], times[len(times) // 10], times[len(times) * 9 // 10]


def read_bandwidth():
    """Bytes a second of a reduction over 4 GB."""
    x = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    median, _, _ = time_graph([lambda: torch.amax(x)] * 2, 5)
    return x.numel() * 4 / median * 1e3


def backends(q, k, v, group, prefill):
    """Name -> function over one set of buffers. q [batch, heads, rows, dim], k and v [batch, kv_heads, tokens, dim]."""

    def sdpa(backend, query, gqa, causal):
        def call(i):
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(query, k[i], v[i], is_causal=causal, enable_gqa=gqa)

        return call

    found = {
        "flash": sdpa(SDPBackend.FLASH_ATTENTION, q, group > 1, prefill),
        "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION, q, group > 1, prefill),
    }
    if not prefill and group > 1:
        batch, heads, _, dim = q.shape
        found["flash packed"] = sdpa(SDPBackend.FLASH_ATTENTION, q.view(batch, heads // group, group, dim), False, False)
    return found


def measure(batch, tokens, heads, kv_heads, dim, prefill):
    size = 2 * batch * kv_heads * tokens * dim * 2
    copies = 1 if size > ROTATE_BYTES / 2 or prefill else min(64, int(ROTATE_BYTES / size) + 1)
    q = torch.randn(batch, heads, tokens if prefill else 1, dim, device="cuda", dtype=torch.bfloat16)
    k, v = ([torch.randn(batch, kv_heads, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(copies)] for _ in range(2))
    results, errors = {}, {}
    for name, call in backends(q, k, v, heads // kv_heads, prefill).items():
        try:
            calls = [lambda i=i: call(i % copies) for i in range(1 if prefill else copies if copies > 1 else 4)]
            median, low, high = time_graph(calls, 5 if prefill else 11)
            results[name] = {"ms": median, "low": low, "high": high}
        except Exception as error:  # an implementation that refuses the shape is no candidate; its reason is kept
            errors[name] = str(error).splitlines()[0][:120]
            torch.cuda.synchronize()
    best = min(results, key=lambda name: results[name]["ms"])
    return {
        "batch": batch, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "prefill": prefill,
        "best": best, "ms": results[best]["ms"], "bytes": size, "results": results, "errors": errors,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", default=["1x32768", "1x196608", "8x131072", "32x32768", "64x16384", "128x8192"])
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--heads", default="32/8")
    parser.add_argument("--dim", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    heads, kv_heads = map(int, arguments.heads.split("/"))
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "read_bytes_per_s": read_bandwidth()}), flush=True)
    for shape in arguments.shapes:
        batch, tokens = map(int, shape.split("x"))
        print(json.dumps(measure(batch, tokens, heads, kv_heads, arguments.dim, arguments.prefill)), flush=True)


if __name__ == "__main__":
    main()
