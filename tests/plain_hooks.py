"""Sites read and changed with PyTorch's own hooks, on a twin that nnsight never saw: the yardstick of traced runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prismlens import trace
from prismlens.models.config import LVRConfig
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
    "hook_resid_pre": ("{layer}", "input", ""),
    "hook_attn_in": ("{layer}.input_layernorm", "input", ""),
    "ln1.hook_scale": ("{layer}.input_layernorm", "output", "scale"),
    "ln1.hook_normalized": ("{layer}.input_layernorm", "output", "normalized"),
    "attn.q.hook_in": ("{layer}.self_attn.q_proj", "input", ""),
    "attn.hook_q": ("{layer}.self_attn.q_proj", "output", "heads"),
    "attn.k.hook_in": ("{layer}.self_attn.k_proj", "input", ""),
    "attn.hook_k": ("{layer}.self_attn.k_proj", "output", "heads"),
    "attn.v.hook_in": ("{layer}.self_attn.v_proj", "input", ""),
    "attn.hook_v": ("{layer}.self_attn.v_proj", "output", "heads"),
    "attn.hook_rot_q": ("{layer}.self_attn.hook_rot_q", "output", ""),
    "attn.hook_rot_k": ("{layer}.self_attn.hook_rot_k", "output", ""),
    "attn.hook_attn_scores": ("{layer}.self_attn.hook_attn_scores", "output", "queries"),
    "attn.hook_pattern": ("{layer}.self_attn.hook_pattern", "output", "queries"),
    "attn.hook_z": ("{layer}.self_attn.o_proj", "input", "heads"),
    "attn.hook_result": ("{layer}.self_attn.o_proj", "output", "result"),
    "hook_attn_out": ("{layer}.self_attn.o_proj", "output", ""),
    "hook_resid_mid": ("{layer}.post_attention_layernorm", "input in place", ""),
    "hook_mlp_in": ("{layer}.post_attention_layernorm", "input", ""),
    "ln2.hook_scale": ("{layer}.post_attention_layernorm", "output", "scale"),
    "ln2.hook_normalized": ("{layer}.post_attention_layernorm", "output", "normalized"),
    "mlp.hook_pre": ("{layer}.mlp.gate_proj", "output", ""),
    "mlp.hook_pre_linear": ("{layer}.mlp.up_proj", "output", ""),
    "mlp.hook_post": ("{layer}.mlp.down_proj", "input", ""),
    "hook_mlp_out": ("{layer}.mlp", "output", ""),
    "hook_resid_post": ("{layer}", "output", ""),
}
"""Written out by hand, so that a wrong line in the package's own table does not go unnoticed: module, end, form."""
OUTSIDE = {
    "hook_latent": ("hook_latent", "output", ""),
    "hook_embed": ("hook_embed", "output", ""),
    "ln_final.hook_scale": ("model.language_model.norm", "output", "scale"),
    "ln_final.hook_normalized": ("model.language_model.norm", "output", "normalized"),
    "unembed.hook_in": ("model.language_model.norm", "output", ""),
    "unembed.hook_out": ("lm_head", "output", ""),
    "hook_latent_head": ("hook_latent_head", "output", ""),
}
EAGER = ("rot_q", "rot_k", "attn_scores", "pattern")
ASKED = (*EAGER, "result", "attn_in", "mlp_in", "q.hook_in", "k.hook_in", "v.hook_in", "unembed.hook_out")
"""Ends of the names that are kept only where they are asked for."""


def every_name(layers: int = 3, *, head: bool = False) -> list[str]:
    """Every site of the language model, in the order in which a forward reaches them."""
    names = [f"blocks.{layer}.{inner}" for layer in range(layers) for inner in INSIDE]
    last = [*OUTSIDE][2:] if head else [*OUTSIDE][2:-1]
    return ["hook_latent", "hook_embed", *names, *last]


EVERY = every_name(LAYERS)
NAMES = [name for name in EVERY if not name.endswith(ASKED)]
"""Those of the tiny models; the second are the ones that a cache keeps unasked."""

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
    return paired(tiny_config(processor.tokenizer, width=64, layers=LAYERS, **latent), processor, seed)


SHAPES = [
    {"heads": 4, "kv": 2, "d_head": 16, "layers": 2, "tied": True, "lvr_head": "none", "mrope": [2, 3, 3]},
    {"heads": 3, "kv": 1, "d_head": 8, "layers": 1, "tied": False, "lvr_head": "simple", "mrope": [1, 2, 1]},
    {"heads": 2, "kv": 2, "d_head": 32, "layers": 1, "tied": True, "lvr_head": "gated", "mrope": [4, 6, 6]},
    {"heads": 6, "kv": 3, "d_head": 4, "layers": 1, "tied": False, "lvr_head": "none", "mrope": [0, 1, 1]},
    {"heads": 5, "kv": 1, "d_head": 16, "layers": 1, "tied": False, "lvr_head": "none", "mrope": [6, 1, 1]},
]
"""Random models of several shapes: grouped queries from none to all, tied and untied, with and without an LVR head."""


def shaped_twins(number: int, *, steps: int = 1, tokens: int = 1) -> Twins:
    """Twins of the shape ``SHAPES[number]``; norm weights and biases are random too."""
    shape, processor = SHAPES[number], tiny_processor(start=True)
    config = tiny_config(
        processor.tokenizer, width=shape["heads"] * shape["d_head"], layers=shape["layers"], latent_steps=steps,
        lvr_head=shape["lvr_head"],
    )  # fmt: skip
    text = config.text
    text.num_attention_heads, text.num_key_value_heads = shape["heads"], shape["kv"]
    text.intermediate_size, text.rms_norm_eps = 3 * shape["d_head"] + 1, 1e-5
    text.rope_parameters = {**text.rope_parameters, "mrope_section": shape["mrope"]}
    config.tie_word_embeddings = text.tie_word_embeddings = shape["tied"]
    # Windows smaller than the images, so that the tower's order of patches is not the processor's.
    config.vision_config.window_size, config.vision_config.fullatt_block_indexes = 28, [1]
    pair = paired(config, processor, number)
    for model in (pair.traced.hf, pair.plain):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
                if name == "lm_head.weight":  # an untied one, which `initialise` leaves alone
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    pair.traced.max_new_tokens = tokens
    return pair


def paired(config: LVRConfig, processor: LVRProcessor, seed: int) -> Twins:
    """Two models with the same random weights."""
    models = []
    for _ in range(2):
        model = LVRForConditionalGeneration(config).eval()
        initialise(model, seed)
        models.append(model)
    traced = trace.load((models[0], processor))
    traced.max_new_tokens = TOKENS
    return Twins(traced, models[1], processor)


def module_of(model: LVRForConditionalGeneration, name: str) -> tuple[nn.Module, str, str]:
    """The module behind a site, which end of it, and the form of the value."""
    if name in OUTSIDE:
        path, end, form = OUTSIDE[name]
        return model.get_submodule(path), end, form
    _, layer, inner = name.split(".", 2)
    path, end, form = INSIDE[inner]
    return model.model.language_model.layers.get_submodule(path.format(layer=layer)), end, form


@contextmanager
def hooked(model: LVRForConditionalGeneration, name: str, change: Change) -> Iterator[None]:
    """While open, the site's value passes through `change`, positions on the second axis; None leaves the value."""
    module, end, form = module_of(model, name)
    head = model.config.text.hidden_size // model.config.text.num_attention_heads

    def after(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if form in ("scale", "normalized", "result"):
            return derived(form, module, args[0], output, change, head)
        new = change(formed(form, output, head))
        return None if new is None else unformed(form, new)

    def before(_: nn.Module, args: tuple) -> tuple | None:
        new = change(formed(form, args[0], head))
        if new is None:
            return None
        if end == "input in place":
            args[0].copy_(new)
            return None
        return (unformed(form, new), *args[1:])

    handle = module.register_forward_hook(after) if end == "output" else module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def formed(form: str, raw: Tensor, head: int) -> Tensor:
    """A module's tensor in the form that the name promises."""
    if form == "heads":
        return raw.reshape(*raw.shape[:-1], raw.shape[-1] // head, head)
    return raw.permute(0, 2, 1, 3) if form == "queries" else raw


def unformed(form: str, value: Tensor) -> Tensor:
    """And back."""
    if form == "heads":
        return value.reshape(*value.shape[:-2], -1)
    return value.permute(0, 2, 1, 3) if form == "queries" else value


def derived(form: str, module: nn.Module, given: Tensor, output: Tensor, change: Change, head: int) -> Tensor | None:
    """The output of a norm or of an output projection after a change of what is computed from its input."""
    wide, bias = given.float(), getattr(module, "bias", None)
    if form == "result":
        parts = [given[..., i : i + head] @ module.weight[:, i : i + head].T for i in range(0, given.shape[-1], head)]
        old = torch.stack(parts, -2)
    else:
        square = wide.square().mean(-1, keepdim=True) + module.variance_epsilon
        old = square.sqrt() if form == "scale" else (wide * torch.rsqrt(square)).to(given.dtype)
    new = change(old)
    if new is None:
        return None
    if form == "result":
        joined = new.sum(-2) if bias is None else new.sum(-2) + bias
    else:
        joined = module.weight * (new if form == "normalized" else (wide / new).to(given.dtype))
    return torch.where((new != old).flatten(2).any(-1)[..., None], joined, output)


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
    pair: Twins,
    items: list[Item],
    changes: dict[int, list[tuple[str, Change]]] | None = None,
    *,
    every_logit: bool = False,
) -> tuple[Unrolled, Record]:
    """A run of the untraced twin; `changes` are made by plain hooks during forward 0 (the prefill), 1, 2, ...

    `every_logit`: logits of the whole prompt, not of its last position only (whose last bits differ in another batch).
    """
    count = [0]

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        with ExitStack() as stack:
            for name, change in (changes or {}).get(count[0], []):
                stack.enter_context(hooked(pair.plain, name, change))
            count[0] += 1
            if every_logit:
                inputs["keep"] = slice(None)
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
