"""Sites read and changed with PyTorch's own hooks, on a twin that nnsight never saw: the yardstick of traced runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prismlens import trace
from prismlens.models.loop import LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import LVRProcessor
from prismlens.trace import PrismModel
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.types import Item
from prismlens.unrolled import Unrolled

LAYERS, STEPS, TOKENS = 3, 3, 2
CLOSE = [9, 10]

INSIDE = {
    "hook_resid_pre": ("{layer}", "input"),
    "attn.hook_q": ("{layer}.self_attn.q_proj", "output"),
    "attn.hook_k": ("{layer}.self_attn.k_proj", "output"),
    "attn.hook_v": ("{layer}.self_attn.v_proj", "output"),
    "hook_attn_out": ("{layer}.self_attn.o_proj", "output"),
    "hook_resid_mid": ("{layer}.post_attention_layernorm", "input in place"),
    "hook_mlp_out": ("{layer}.mlp", "output"),
    "hook_resid_post": ("{layer}", "output"),
}
"""Written out by hand, so that a wrong line in the package's own table does not go unnoticed."""

NAMES = [
    "hook_latent",
    *(f"blocks.{layer}.{inner}" for layer in range(LAYERS) for inner in INSIDE),
    "ln_final.hook_normalized",
]
"""Every site of the tiny models, in the order in which a forward reaches them."""

Change = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Twins:
    """Two models with the same weights: one to be traced, one that only ever meets plain hooks."""

    traced: PrismModel
    plain: LVRForConditionalGeneration
    processor: LVRProcessor

    @property
    def settings(self) -> LoopSettings:
        return self.traced.settings()


def twins(seed: int = 0, **config: object) -> Twins:
    """Untrained twins; `config` overrides the latent settings."""
    processor = tiny_processor(start=True)
    latent: dict = {"latent_steps": STEPS, "latent_close": CLOSE, **config}
    models = []
    for _ in range(2):
        model = LVRForConditionalGeneration(tiny_config(processor.tokenizer, width=64, layers=LAYERS, **latent)).eval()
        initialise(model, seed)
        models.append(model)
    traced = trace.load((models[0], processor))
    traced.max_new_tokens = TOKENS
    return Twins(traced, models[1], processor)


def module_of(model: LVRForConditionalGeneration, name: str) -> tuple[nn.Module, str]:
    """The module behind a site, and which end of it."""
    if name == "hook_latent":
        return model.hook_latent, "output"
    if name == "ln_final.hook_normalized":
        return model.model.language_model.norm, "output"
    _, layer, inner = name.split(".", 2)
    path, end = INSIDE[inner]
    return model.model.language_model.layers.get_submodule(path.format(layer=layer)), end


@contextmanager
def hooked(model: LVRForConditionalGeneration, name: str, change: Change) -> Iterator[None]:
    """While open, the site's value passes through `change`; None from it leaves the value."""
    module, end = module_of(model, name)

    def after(_: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return change(output)

    def before(_: nn.Module, args: tuple) -> tuple | None:
        new = change(args[0])
        if new is None:
            return None
        if end == "input in place":
            args[0].copy_(new)
            return None
        return (new, *args[1:])

    handle = module.register_forward_hook(after) if end == "output" else module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def reading(model: LVRForConditionalGeneration, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While open, keeps a copy of every value that the sites have, one a forward."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(hooked(model, name, lambda value, name=name: kept[name].append(value.clone())))
        yield kept


@dataclass
class Record:
    """What each forward of a run was fed and what came out."""

    fed: list[Tensor] = field(default_factory=list)
    """The residual stream as it enters the first block, ``[batch, query, d]``."""
    logits: list[Tensor] = field(default_factory=list)
    position_ids: list[Tensor] = field(default_factory=list)

    def latent(self, step: int) -> Tensor:
        """The vectors fed at a latent step, ``[batch, d]``; the prefill is forward 0."""
        return self.fed[step + 1][:, 0]


@contextmanager
def recording(model: LVRForConditionalGeneration) -> Iterator[Record]:
    """While open, records every forward, by plain hooks."""
    record = Record()
    language = model.model.language_model
    handles = [
        language.layers[0].input_layernorm.register_forward_pre_hook(
            lambda _, args: record.fed.append(args[0].clone())
        ),
        # A replay asks for no logits inside its forward, and for those of single positions after it.
        model.lm_head.register_forward_hook(
            lambda _, args, out: record.logits.append(out[:, -1].clone()) if out.ndim == 3 and out.shape[1] else None
        ),
        language.register_forward_pre_hook(
            lambda _, args, kwargs: record.position_ids.append(kwargs["position_ids"].clone()), with_kwargs=True
        ),
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def plain_run(
    pair: Twins, items: list[Item], changes: dict[int, list[tuple[str, Change]]] | None = None
) -> tuple[Unrolled, Record]:
    """A run of the untraced twin; `changes` are made by plain hooks during forward 0 (the prefill), 1, 2, ..."""
    count = [0]

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        with ExitStack() as stack:
            for name, change in (changes or {}).get(count[0], []):
                stack.enter_context(hooked(pair.plain, name, change))
            count[0] += 1
            return plain_forward(pair.plain)(unrolled, n_queries, **inputs)

    with recording(pair.plain) as record:
        run = unroll(pair.plain, pair.processor(items), pair.settings, forward=forward)
    return run, record


@torch.no_grad()
def whole(pair: Twins, run: Unrolled) -> dict:
    """Arguments of one `step` over finished sequences."""
    prompt = pair.processor(run.items)
    features = pair.plain.image_features(prompt.pixel_values, prompt.image_grid_thw)
    return replay_inputs(pair.plain, run) | {"image_features": features}


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two records are equal bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((a - b).abs().max() / b.abs().max())
