"""Trains the two encoders of vnp-small together, end to end, on one GPU.

    python -m tools.train_encoders GENOMES --size w64 --out DIR

Both encoders and an MLP over their mean embeddings learn to tell viruses from the rest, frame by
frame; each encoder has a linear head of its own beside, so that neither leans on the other. At
every check a moving average of the weights is measured on whole groups kept out of training;
the best average is kept, and without a better one for PATIENCE checks the training ends.

Deterministic given genomes, size, seed, device and versions. DIR gets a model folder for each
encoder and log.json with data digests, settings, loss curves and time. What came of it:
docs/vnp-small.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ops.dna_tokens import train_bpe
from ops.modelstore import TOKENIZER
from ops.train.evaluate import record_scores
from ops.train.features import Features
from ops.train.fragments import draw, grid
from ops.train.metrics import auroc
from ops.weights import write_model
from tools import encoder_training as training
from tools.encoder_noise import Feed, mask_loss, masked, noisy
from tools.encoder_recipe import SIZES, VOCABULARY, Recipe, Size, changed, rate_factor
from tools.fragment_pool import Pool, Shape, make_pool, sources
from tools.genomes import HELD_OUT_VALID, Genome, digest, read_genomes

Batch = dict[str, Tensor]

KEYS = ("esm", "dna")
#: Fragments as they come: whole chunks of 500 bases, last chunks, reads.
SHAPES = {"long": Shape(301, 500, 0.75, 168, 120), "short": Shape(150, 300, 0.5, 104, 80)}
VALID_LENGTHS = {500: "long", 300: "short"}
VALID_PER_GROUP = 400
BPE_FRAGMENTS = 40_000
HIDDEN = 256
PATIENCE = 3
LOG_EVERY = 200
#: What the batch norm's statistics of averaged weights are taken from.
NORM_BATCHES, NORM_ROWS = 16, 1_024
LOSSES = ("loss", "joint", "esm2", "dnabert", "esm2_mask", "dnabert_mask")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("genomes", type=Path, help="folder, see tools/genomes.py")
    parser.add_argument("--size", choices=SIZES, default="w64")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    deterministic()
    genomes = read_genomes(arguments.genomes, ("train", "valid"))
    train = [genome for genome in genomes if genome.split == "train"]
    valid = [genome for genome in genomes if genome.note == HELD_OUT_VALID]
    size = changed(SIZES[arguments.size], arguments.set)
    pools = make_pools(train, valid, arguments.out, size.recipe)
    run = Run(size, pools, torch.device(arguments.device))
    run.train()
    write(run, arguments.out, {"train": digest(train), "valid": digest(valid)})


def deterministic() -> None:
    """The same bits every time; must come before the first use of the GPU."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


def make_pools(
    train: Sequence[Genome], valid: Sequence[Genome], out: Path, recipe: Recipe
) -> dict[str, Pool]:
    """Trains the tokenizer and makes the pools to train on ("long", "short") and to validate on
    ("500", "300")."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = out / TOKENIZER
    pieces = cut(train, SHAPES["long"], BPE_FRAGMENTS, recipe.seed)
    letters = (train[g].letters[s : s + n].decode() for g, s, n in pieces.tolist())
    train_bpe(letters, VOCABULARY).save(str(tokenizer), pretty=True)
    cores = len(os.sched_getaffinity(0))
    pools = {}
    for number, (name, shape) in enumerate(SHAPES.items(), 1):
        fragments = cut(train, shape, recipe.fragments, recipe.seed + 100 * number)
        pools[name] = make_pool(train, fragments, tokenizer, shape, cores)
    for length, name in VALID_LENGTHS.items():
        fragments = grid(sources(valid), length, VALID_PER_GROUP, recipe.seed)
        pools[str(length)] = make_pool(valid, fragments, tokenizer, SHAPES[name], cores)
    return pools


def cut(genomes: Sequence[Genome], shape: Shape, count: int, seed: int) -> np.ndarray:
    """Fragments (n, 3) of that shape."""
    return draw(sources(genomes), count, shape.longest, seed, shape.shortest, shape.share_longest)


class Run:
    """One training: the model, its average, and what was seen of both."""

    def __init__(self, size: Size, pools: dict[str, Pool], device: torch.device) -> None:
        self.size, self.recipe, self.device = size, size.recipe, device
        self.model = training.Trainee(size.esm2, size.dnabert, HIDDEN)
        self.model.reset(self.recipe.seed)
        self.model.to(device)
        torch.manual_seed(self.recipe.seed)
        self.rng = np.random.default_rng(self.recipe.seed)
        self.rows = {name: on_device(pools[name], device) for name in SHAPES}
        self.valid = {
            name: (pools[name], on_device(pools[name], device)) for name in ("500", "300")
        }
        self.feeds = {name: Feed(len(pools[name].virus), self.rng) for name in SHAPES}
        self.curve: list[dict[str, float]] = []
        self.checks: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_step = 0
        self.seconds = 0.0
        if device.type == "cuda":
            training.compile_layers()

    def train(self) -> None:
        """Trains until no check has been better for PATIENCE checks, or the steps are done."""
        recipe = self.recipe
        params, optimizer = self._optimizer()
        average = [param.detach().clone() for param in params]
        sums = torch.zeros(len(LOSSES), device=self.device)
        started = time.monotonic()
        self.model.train()
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_factor(step, recipe)
            losses = self._losses(self._next_batch())
            losses[0].backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                share = 1 - min(recipe.average, (1 + step) / (10 + step))
                torch._foreach_lerp_(average, [param.detach() for param in params], share)
                sums += torch.stack([loss.detach() for loss in losses])
            if (step + 1) % LOG_EVERY == 0:
                self._log(step + 1, sums)
            if (step + 1) % recipe.check_every == 0 or step + 1 == recipe.steps:
                self._check(step + 1, params, average)
                if step + 1 - self.best_step >= PATIENCE * recipe.check_every:
                    break
        self.seconds = time.monotonic() - started

    def _optimizer(self) -> tuple[list[Tensor], torch.optim.Optimizer]:
        decayed = [param for param in self.model.parameters() if param.ndim >= 2]
        others = [param for param in self.model.parameters() if param.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.rate, betas=(0.9, 0.98), fused=fused)
        return [*decayed, *others], optimizer

    def _next_batch(self) -> Batch:
        name = "long" if self.rng.random() < self.recipe.share_long else "short"
        rows = self.recipe.rows * SHAPES["long"].esm // SHAPES[name].esm // 8 * 8
        index = torch.from_numpy(self.feeds[name].take(rows)).to(self.device)
        return {key: column[index].long() for key, column in self.rows[name].items()}

    def _losses(self, batch: Batch) -> tuple[Tensor, ...]:
        """The losses named in LOSSES; the first is what is minimised."""
        recipe, model = self.recipe, self.model
        tokens, places = self._spoiled(batch)
        lengths = {key: batch[f"{key}_length"] for key in KEYS}
        with self._autocast():
            esm = training.esm2_hidden(model.esm2, tokens["esm"], lengths["esm"], recipe.drop)
            dna = training.dnabert_hidden(model.dnabert, tokens["dna"], lengths["dna"], recipe.drop)
            masks = [torch.zeros((), device=self.device)] * 2
            if places:
                masks = [
                    mask_loss(model.esm2_mask_head, esm, places["esm"], batch["esm"]),
                    mask_loss(model.dnabert_mask_head, dna, places["dna"], batch["dna"]),
                ]
        protein = training.mean_esm2(esm, lengths["esm"])
        nucleotide = training.mean_dnabert(dna, lengths["dna"])
        hard = F.one_hot(batch["virus"], 2).float()
        target = hard * (1 - recipe.smoothing) + recipe.smoothing / 2
        joint = F.cross_entropy(model.joint_logits(nucleotide, protein, 0.1), target)
        alone = [
            F.cross_entropy(model.esm2_head(protein), target),
            F.cross_entropy(model.dnabert_head(nucleotide), target),
        ]
        total = joint + recipe.modality_weight * sum(alone) + recipe.mask_weight * sum(masks)
        return total, joint, *alone, *masks

    def _spoiled(self, batch: Batch) -> tuple[Batch, Batch]:
        """The tokens with masks in the first half of the rows and noise in all of them, and the
        places of the masks; none where the recipe has no masks."""
        recipe = self.recipe
        tokens = {key: batch[key] for key in KEYS}
        places: Batch = {}
        half = len(batch["virus"]) // 2
        for key in KEYS if recipe.mask_weight else ():
            places[key], tokens[key] = masked(tokens[key], batch[f"{key}_length"], half, key)
        for key in KEYS if recipe.noise else ():
            tokens[key] = noisy(tokens[key], batch[f"{key}_length"], recipe.noise, key)
        return tokens, places

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _log(self, step: int, sums: Tensor) -> None:
        values = (sums / LOG_EVERY).tolist()
        sums.zero_()
        if not np.isfinite(values).all():
            raise SystemExit(f"train_encoders: the loss is not finite at step {step}")
        self.curve.append({"step": step, **dict(zip(LOSSES, values, strict=True))})

    def _check(self, step: int, params: list[Tensor], average: list[Tensor]) -> None:
        """Measures the averaged weights on unseen groups, and keeps them when they are the best."""
        live = {key: value.clone() for key, value in self.model.state_dict().items()}
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for param, averaged in zip(params, average, strict=True):
                param.copy_(averaged)
            self._refresh_norm()
            found = {f"auroc_{name}": self._measure(*self.valid[name]) for name in self.valid}
        self.checks.append({"step": step, **found})
        print(f"step {step}", {k: round(v, 4) for k, v in found.items()}, flush=True)
        if sum(found.values()) > max((_total(check) for check in self.checks[:-1]), default=0.0):
            self.best_step = step
            self.best = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(live)
        self.model.train()

    def _refresh_norm(self) -> None:
        """The batch norm's statistics, anew for the averaged weights."""
        norm = self.model.joint.bn1
        norm.reset_running_stats()
        norm.momentum = None
        self.model.train()
        for _ in range(NORM_BATCHES):
            index = torch.from_numpy(self.feeds["long"].take(NORM_ROWS)).to(self.device)
            nucleotide, protein = self.embed({k: v[index] for k, v in self.rows["long"].items()})
            norm(self.model.joint.hidden_layer(torch.cat([nucleotide, protein], 1)))
        norm.momentum = 0.1
        self.model.eval()

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """DNABERT-S and ESM-2 embeddings, without noise and dropout."""
        lengths = {key: batch[f"{key}_length"].long() for key in ("esm", "dna")}
        with self._autocast():
            esm = training.esm2_hidden(self.model.esm2, batch["esm"].long(), lengths["esm"])
            dna = training.dnabert_hidden(self.model.dnabert, batch["dna"].long(), lengths["dna"])
        return training.mean_dnabert(dna, lengths["dna"]), training.mean_esm2(esm, lengths["esm"])

    def _measure(self, pool: Pool, rows: Batch) -> float:
        """AUROC of the fragments' scores by the rule of `ops.calls`."""
        parts = []
        for first in range(0, len(pool.virus), 2048):
            embedded = self.embed({k: v[first : first + 2048] for k, v in rows.items()})
            parts.append(self.model.joint_logits(*embedded, 0.0).softmax(1).cpu())
        fragment = pool.fragment.astype(np.int64)
        zeros = np.zeros(len(fragment))
        features = Features(fragment, zeros.astype(np.uint32), zeros.astype(np.uint8), zeros, zeros)
        count = int(fragment.max()) + 1
        scores = record_scores(features, torch.cat(parts).numpy(), count)
        virus = np.zeros(count, bool)
        virus[fragment] = pool.virus > 0
        scored = np.isfinite(scores)
        return auroc(virus[scored], scores[scored]) or 0.0


def _total(check: dict[str, float]) -> float:
    return sum(value for key, value in check.items() if key != "step")


def on_device(pool: Pool, device: torch.device) -> Batch:
    names = ("esm", "dna", "esm_length", "dna_length", "virus")
    columns = {name: getattr(pool, name) for name in names}
    columns["dna"] = columns["dna"].astype(np.int16)
    return {name: torch.from_numpy(column).to(device) for name, column in columns.items()}


def write(run: Run, out: Path, digests: dict[str, str]) -> None:
    """The model folders, in bf16, and the log."""
    run.model.load_state_dict(run.best)
    source = f"tools/train_encoders.py, seed {run.recipe.seed}; genomes sha256:{digests['train']}"
    common: dict[str, Any] = {"trained": True, "source": source}
    tokenizer = {TOKENIZER: (out / TOKENIZER).read_bytes()}
    for kind, config, model, files in (
        ("esm2", run.size.esm2, run.model.esm2, {}),
        ("dnabert", run.size.dnabert, run.model.dnabert, tokenizer),
    ):
        tensors = {key: value.cpu().bfloat16() for key, value in model.state_dict().items()}
        settings = {"kind": kind, **asdict(config), **common}
        write_model(out / f"vnp-small-{kind}", settings, tensors, files)
    log = {
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "genomes": digests,
        "recipe": asdict(run.recipe),
        "kept_step": run.best_step,
        "seconds": run.seconds,
        "checks": run.checks,
        "curve": run.curve,
    }
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
