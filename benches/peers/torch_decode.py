"""What PyTorch makes of the same model in f16: the peer of `flute bench --shape`.

    python3 benches/peers/torch_decode.py --shape llama-3.1-8b --batch 1,16,64 > torch.jsonl

Needs PyTorch (2.11 on) and transformers (5.17 on), and downloads nothing: weights are noise, made on the device. Decoding
is greedy through a static cache, the step compiled with mode="reduce-overhead", which is CUDA graphs; every step's tokens
are read by the host, as whoever streams a text does, and beside it steps are timed that nobody reads. The context behind
a step is noise. Reading a prompt is eager. Each case is a process of its own that is ended after --seconds, compiling
included, so that one which compiles for too long, or fails, costs only itself: its line says "skipped". One JSON object a
line on stdout, progress on stderr. Exit codes: 0, 1 if no case was measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

# hidden, intermediate, layers, query heads, key heads, vocabulary
SHAPES = {
    "tiny": (256, 768, 6, 4, 2, 2048),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256),
    "llama-3.1-70b": (8192, 28672, 80, 64, 8, 128256),
}
# Steps that are not counted: in them the step is compiled, recorded, and replayed for the first time.
WARM_UP = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", default="1,16,64", help="sequences decoded together, a case each; '' for none")
    parser.add_argument("--context", type=int, default=1024, help="tokens behind the first step")
    parser.add_argument("--tokens", type=int, default=64, help="steps measured")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt that is read; 0 for none")
    parser.add_argument("--seconds", type=float, default=240, help="for a case, from the start of its process")
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        kind, size = args.case.split("=")
        measured = decode(args, int(size)) if kind == "decode" else prefill(args, int(size))
        print(json.dumps(measured), flush=True)
        return 0
    cases = [f"decode={batch}" for batch in args.batch.split(",") if batch]
    cases += [f"prefill={args.prompt}"] if args.prompt else []
    return 0 if sum([run(case, args.seconds) for case in cases]) else 1


def run(case, seconds):
    """Measures `case` in a process of its own and prints its line; returns whether it was measured."""
    print(f"{case} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        reason = None if done.returncode == 0 and lines else f"it failed with {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"it took more than {seconds:g} s"
    print(json.dumps({"case": case, "skipped": reason}) if reason else lines[-1], flush=True)
    return reason is None


def load(args, positions):
    """The model, in f16, its weights noise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, key_heads, vocab = SHAPES[args.shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocab,
        max_position_embeddings=max(positions, 8192),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float16)
    with torch.device(args.device):
        return LlamaForCausalLM(config).eval()


def decode(args, batch):
    import torch
    from transformers import StaticCache

    capacity = args.context + WARM_UP + 2 * args.tokens
    model = load(args, capacity)
    config = model.config
    cache = StaticCache(config=config, max_cache_len=capacity)
    dim = config.hidden_size // config.num_attention_heads
    cache.early_initialization(batch, config.num_key_value_heads, dim, torch.float16, torch.device(args.device))
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(args.context)

    def step(tokens):
        return model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    compiled = step if args.eager else torch.compile(step, mode="reduce-overhead", dynamic=False)
    tokens = torch.arange(batch, device=args.device).reshape(batch, 1) % config.vocab_size
    start = time.perf_counter()
    steps, first = [], None
    for index in range(WARM_UP + args.tokens):
        begin = time.perf_counter()
        torch.compiler.cudagraph_mark_step_begin()
        # A replay writes where the last one did: what is read next must not lie there.
        tokens = compiled(tokens).clone()
        tokens.tolist()
        if index == 0:
            first = time.perf_counter() - start
        if index >= WARM_UP:
            steps.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in range(args.tokens):
        torch.compiler.cudagraph_mark_step_begin()
        tokens = compiled(tokens).clone()
    tokens.tolist()
    unread = (time.perf_counter() - begin) / args.tokens
    median = statistics.median(steps)
    return {
        "case": f"decode={batch}",
        **about(args),
        "compiled": not args.eager,
        "batch": batch,
        "context": args.context,
        "step_ms": median * 1e3,
        "step_ms_least": min(steps) * 1e3,
        "step_ms_unread": unread * 1e3,
        "tokens_per_second": batch / median,
        "tokens_per_second_unread": batch / unread,
        "first_step_seconds": first,
    }


def prefill(args, prompt):
    model = load(args, prompt)
    import torch

    tokens = torch.arange(prompt, device=args.device).reshape(1, prompt) * 7919 % model.config.vocab_size
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        logits = model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits
        logits[:, -1].argmax(-1).tolist()
        seconds.append(time.perf_counter() - begin)
    return {
        "case": f"prefill={prompt}",
        **about(args),
        "prompt": prompt,
        "first_token_ms": min(seconds[1:]) * 1e3,
        "first_token_ms_cold": seconds[0] * 1e3,
        "tokens_per_second": prompt / min(seconds[1:]),
    }


def about(args):
    import torch
    import transformers

    cuda = args.device.startswith("cuda")
    return {
        "shape": args.shape,
        "dtype": "float16",
        "device": torch.cuda.get_device_name() if cuda else args.device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
