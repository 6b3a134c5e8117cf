"""A small decoder that knows nothing of memory: the base that `benchmarks/ablation.py` gives one.

    torchrun --nproc-per-node 2 benchmarks/plain.py --out plain

A stock `LlamaForCausalLM` learns from plain text in its window: real prose in which facts are told, then questions and
answers. About 30 minutes on two cores. It goes on from its checkpoint; every batch is a function of the step.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.progress import Progress
from safetensors.torch import load_file, save_file

from remanence import MemoryModel
from remanence.train.attention import GROUPED
from remanence.train.data import Mix, Prose, Rows, Streams, read_prose
from remanence.train.stages import small_decoder

PROSE = Path(__file__).parent.parent / "data" / "prose_train.txt.xz"


@dataclass(frozen=True)
class Part:
    """Steps with batches of one kind; the learning rate falls to zero in the last `decay` of them."""

    steps: int
    mix: Mix
    decay: float = 0.0


SHORT = Mix(streams=32, chunks=2, tokens=(44, 64), questions=6, facts=(2, 2, 3))
LONG = Mix(streams=14, chunks=5, tokens=(44, 76), questions=9, facts=(1, 2, 2, 3), update=0.2, unknown=0.15)
PARTS = Part(500, SHORT), Part(1500, LONG, decay=0.5)


def loss_of(model: Any, streams: Streams, step: int, mix: Mix) -> tuple[torch.Tensor, dict]:
    """Next-token loss of the text and, weighing more, of the answers."""
    batch = streams.batch(step, mix)
    bos = torch.full((len(batch.chunks_BTn), 1), model.config.bos_token_id)
    texts = torch.cat([bos, batch.chunks_BTn.flatten(1)], 1)
    grouped = [[q for q in batch.questions if q.stream == stream] for stream in range(len(texts))]
    rows = Rows.of(texts.tolist(), grouped)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows.ids_QT).logits.float()
    wanted, labels = rows.labels_QT >= 0, rows.labels_QT
    answer = F.cross_entropy(logits[wanted], labels[wanted])
    text = F.cross_entropy(logits[:, : texts.shape[1] - 1].flatten(0, 1), texts[:, 1:].flatten())
    wrong = torch.zeros(len(batch.questions))
    wrong.index_add_(0, rows.owner_QT[wanted], (logits[wanted].argmax(-1) != labels[wanted]).float())
    known = torch.tensor([q.chunk is not None for g in grouped for q in g])
    right = (wrong == 0).float()
    figures = {"answer": answer.item(), "text": text.item(), "known": right[known].mean().item(),
               "unknown": right[~known].mean().item()}  # fmt: skip
    return answer + 0.4 * text, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--prose", type=Path, default=PROSE)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a quick look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    tokenizer = MemoryModel.from_pretrained("builtin").tokenizer
    torch.manual_seed(0)
    decoder = small_decoder(tokenizer, 512)
    decoder.set_attn_implementation(GROUPED)
    prose, lane = Prose(read_prose(options.prose), tokenizer), accelerator.process_index
    streams = Streams(prose, tokenizer, seed=1, lane=lane)
    held_out = Streams(prose, tokenizer, seed=1, split="held_out")
    matrices = [p for p in decoder.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in decoder.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "training.safetensors"
    done = 0
    if checkpoint.exists():
        tensors = load_file(checkpoint)
        done = int(tensors.pop("step"))
        decoder.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("m.")}, strict=False)
        for i, optimizer in enumerate(optimizers):
            state = optimizer.state_dict()
            for key, value in tensors.items():
                if key.startswith(f"{i}."):
                    _, j, name = key.split(".")
                    state["state"].setdefault(int(j), {})[name] = value
            optimizer.load_state_dict(state)
    wrapped = accelerator.prepare(decoder)
    total = sum(round(p.steps * options.scale) for p in PARTS)
    saved = time.perf_counter()

    def save(step: int) -> None:
        tensors = {f"m.{k}": v for k, v in decoder.state_dict().items() if k != "lm_head.weight"}
        tensors["step"] = torch.tensor(step)
        for i, optimizer in enumerate(optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    with Progress(disable=not accelerator.is_main_process) as progress:
        bar = progress.add_task("training", total=total, completed=done)
        step = 0
        for part in PARTS:
            steps = round(part.steps * options.scale)
            for i in range(steps):
                step += 1
                if step <= done:
                    continue
                factor = min(1.0, step / 20, (steps - i) / (steps * part.decay) if part.decay else 1.0)
                wrapped.config = decoder.config
                loss, figures = loss_of(wrapped, streams, step, part.mix)
                accelerator.backward(loss)
                for optimizer, rate in zip(optimizers, (0.02, 0.003), strict=True):
                    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
                    optimizer.param_groups[0]["lr"] = rate * factor
                    optimizer.step()
                    optimizer.zero_grad()
                if step % 50 == 0 and accelerator.is_main_process:
                    with torch.no_grad():
                        _, held = loss_of(decoder, held_out, 0, part.mix)
                    figures |= {f"held_{k}": v for k, v in held.items()}
                    with (options.out / "log.jsonl").open("a") as log:
                        line = {"step": step} | {k: round(v, 4) for k, v in figures.items()}
                        log.write(json.dumps(line) + "\n")
                words = f"text {figures['text']:.2f} known {figures['known']:.2f}"
                progress.update(bar, completed=step, description=words)
                if accelerator.is_main_process and (time.perf_counter() - saved > 120 or step == total):
                    save(step)
                    saved = time.perf_counter()
    if accelerator.is_main_process:
        decoder.set_attn_implementation("sdpa")
        decoder.save_pretrained(options.out)
        tokenizer.save_pretrained(options.out)
    accelerator.end_training()


if __name__ == "__main__":
    main()
