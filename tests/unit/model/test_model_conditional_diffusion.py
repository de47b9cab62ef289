import copy
import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel

from magc_model.config import DenoiserConfig, FineTune, PublishedQuirks
from magc_model.errors import BaseModelError, UsageError
from magc_model.nets.conditional_diffusion import ConditionalDenoiser

SMALL = DenoiserConfig(
    channels=(8, 16, 16),
    layers_per_block=2,
    attention_heads=(2, 2, 4),
    norm_groups=4,
    text_tokens=3,
    text_channels=12,
    map_channels=(4, 6, 8),
    adapter_blocks=1,
    fine_tune=FineTune.ALL,
)
BEFORE_BLOCKS = PublishedQuirks(adapter_before_blocks=True, adapter_overlaps_scales=True, adapter_scale=0.18215)


class Inputs:
    def __init__(self, batch: int = 3) -> None:
        generator = torch.Generator().manual_seed(batch)
        self.noisy, self.guide = torch.randn(2, batch, 4, 16, 8, generator=generator)
        self.timesteps = torch.randint(0, 1000, (batch,), generator=generator)
        self.planes = torch.rand(batch, 5, 128, 64, generator=generator)


def denoiser(planes: int | None = 5, quirks: PublishedQuirks | None = None, seed: int = 0) -> ConditionalDenoiser:
    torch.manual_seed(seed)
    model = ConditionalDenoiser(SMALL, planes, quirks or PublishedQuirks())
    model.text.normal_()
    if model.adapter is not None:  # away from the zero start, so that the map counts
        for exit_ in model.adapter.exits.parameters():
            torch.nn.init.normal_(exit_, std=0.3)
    return model.eval()


def run(model: ConditionalDenoiser, inputs: Inputs, rows: slice = slice(None)) -> torch.Tensor:
    features = model.encode_map(inputs.planes[rows]) if model.adapter else None
    return model(inputs.noisy[rows], inputs.timesteps[rows], inputs.guide[rows], features)


def test_default_config_is_stable_diffusion_2_1_base_with_8_channels() -> None:
    with torch.device("meta"):
        model = ConditionalDenoiser(DenoiserConfig(), 3, PublishedQuirks())
    assert sum(parameter.numel() for parameter in model.unet.parameters()) == 865_922_244
    assert model.text.shape == (1, 77, 1024)
    trained = {name: parameter.numel() for name, parameter in model.trainable_parameters()}
    assert trained.pop("unet.conv_in.weight") == 320 * 8 * 9
    assert sum(count for name, count in trained.items() if name.startswith("unet.")) == 124_732_160
    adapter = sum(parameter.numel() for parameter in model.adapter.parameters())
    assert sum(count for name, count in trained.items() if name.startswith("adapter.")) == adapter
    assert not any(".ff." in name or "conv_in.bias" in name for name in trained)


def test_stable_diffusion_config_of_the_unet() -> None:
    """The values of the hub's unet/config.json that are not diffusers' defaults."""
    with torch.device("meta"):
        config = ConditionalDenoiser(DenoiserConfig(), None, PublishedQuirks()).unet.config
    assert config.block_out_channels == (320, 640, 1280, 1280)
    assert config.attention_head_dim == (5, 10, 20, 20)
    assert config.cross_attention_dim == 1024
    assert config.use_linear_projection
    assert config.down_block_types == (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    assert config.up_block_types == ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    assert (config.layers_per_block, config.norm_num_groups, config.norm_eps) == (2, 32, 1e-5)
    assert (config.flip_sin_to_cos, config.freq_shift, config.act_fn) == (True, 0, "silu")


def test_all_weights_are_trained_from_scratch() -> None:
    model = denoiser()
    assert dict(model.trainable_parameters()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("quirks", [PublishedQuirks(), BEFORE_BLOCKS])
def test_every_input_counts(quirks: PublishedQuirks) -> None:
    model, inputs = denoiser(quirks=quirks), Inputs()
    plain = run(model, inputs)
    assert plain.shape == inputs.noisy.shape
    torch.testing.assert_close(run(model, inputs), plain)
    for name in ("noisy", "guide", "planes"):
        other = copy.copy(inputs)
        setattr(other, name, -getattr(inputs, name))
        assert (run(model, other) - plain).abs().max() > 1e-3, name
    other.timesteps = 999 - inputs.timesteps
    assert not torch.allclose(run(model, other), plain)


def test_an_adapter_at_its_start_changes_nothing() -> None:
    inputs, model = Inputs(), ConditionalDenoiser(SMALL, 5, PublishedQuirks()).eval()
    with_map = run(model, inputs)
    model.adapter = None
    torch.testing.assert_close(run(model, inputs), with_map)


@torch.no_grad()
def test_features_are_added_after_each_level_and_to_its_last_skip() -> None:
    """Against the UNet taken apart by hand."""
    model, inputs = denoiser(), Inputs()
    unet, text = model.unet, model.text.expand(3, -1, -1)
    features = model.adapter(model.encode_map(inputs.planes), inputs.noisy)
    time = unet.time_embedding(unet.time_proj(inputs.timesteps))
    hidden = unet.conv_in(torch.cat([inputs.noisy, inputs.guide], dim=1))
    skips = [hidden]
    for block, feature in zip(unet.down_blocks, features, strict=True):
        for index, resnet in enumerate(block.resnets):
            hidden = resnet(hidden, time)
            if hasattr(block, "attentions"):
                hidden = block.attentions[index](hidden, encoder_hidden_states=text).sample
            if index == len(block.resnets) - 1:
                hidden = hidden + feature
            skips.append(hidden)
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
            skips.append(hidden)
    torch.testing.assert_close(finish(unet, hidden, skips, time, text), run(model, inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_published_features_enter_before_resnets_and_no_skip() -> None:
    """Before input blocks 1, 5 and 10 of LDM's numbering; the skips taken before stay without them."""
    model, inputs = denoiser(quirks=BEFORE_BLOCKS), Inputs()
    expected = run(model, inputs)
    unet, text = model.unet, model.text.expand(3, -1, -1)
    for module in unet.modules():
        module._forward_pre_hooks.clear()
    features = model.adapter(model.encode_map(inputs.planes), inputs.noisy)
    time = unet.time_embedding(unet.time_proj(inputs.timesteps))
    hidden = unet.conv_in(torch.cat([inputs.noisy, inputs.guide], dim=1))
    skips = [hidden]
    for block, feature, entrance in zip(unet.down_blocks, features, (0, 1, 0), strict=True):
        for index, resnet in enumerate(block.resnets):
            hidden = resnet(hidden + feature if index == entrance else hidden, time)
            if hasattr(block, "attentions"):
                hidden = block.attentions[index](hidden, encoder_hidden_states=text).sample
            skips.append(hidden)
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
            skips.append(hidden)
    torch.testing.assert_close(finish(unet, hidden, skips, time, text), expected, rtol=1e-4, atol=1e-5)


def finish(unet, hidden, skips, time, text):
    hidden = unet.mid_block(hidden, time, encoder_hidden_states=text)
    for block in unet.up_blocks:
        taken = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        attended = {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}
        hidden = block(hidden_states=hidden, temb=time, res_hidden_states_tuple=taken, **attended)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def test_published_entrances_in_the_paper_config() -> None:
    with torch.device("meta"):
        model = ConditionalDenoiser(DenoiserConfig(), 3, BEFORE_BLOCKS)
    entered = [name for name, module in model.unet.named_modules() if module._forward_pre_hooks]
    assert entered == [f"down_blocks.{level}.resnets.{index}" for level, index in enumerate((0, 1, 1, 0))]


def test_batched_equals_single() -> None:
    for quirks in (PublishedQuirks(), BEFORE_BLOCKS):
        model, inputs = denoiser(quirks=quirks), Inputs()
        singles = torch.cat([run(model, inputs, slice(row, row + 1)) for row in range(3)])
        torch.testing.assert_close(run(model, inputs), singles, rtol=1e-4, atol=1e-5)


def test_channels_last_and_bfloat16() -> None:
    model, inputs = denoiser(), Inputs()
    plain = run(model, inputs)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(last, inputs), plain, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(model, inputs)
    assert cast.dtype == torch.float32
    stored = run(copy.deepcopy(model).to(torch.bfloat16), inputs)
    assert stored.dtype == torch.float32
    for other in (cast, stored):
        assert 0 < (other - plain).abs().max() < 0.1 * plain.abs().max()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    inputs, gradients = Inputs(), []
    for checkpointing in (False, True):
        model = denoiser().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        run(model, inputs).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_gradient_checkpointing_is_refused_where_it_would_lose_the_features() -> None:
    model = denoiser(quirks=BEFORE_BLOCKS)
    with pytest.raises(UsageError, match="published adapter layout: turn it off"):
        model.enable_gradient_checkpointing()
    model.unet.enable_gradient_checkpointing()
    with pytest.raises(UsageError, match="call the denoiser instead"):
        run(model.train(), Inputs()).square().mean().backward()


def test_a_copy_of_a_published_model_feeds_its_own_unet() -> None:
    model, inputs = denoiser(quirks=BEFORE_BLOCKS), Inputs()
    expected = run(model, inputs)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(run(twin, inputs), expected)


def test_published_layout_needs_two_layers_a_block() -> None:
    config = DenoiserConfig(channels=(8, 16), layers_per_block=1, attention_heads=(2, 2), norm_groups=4)
    with pytest.raises(UsageError, match="2 layers a block"):
        ConditionalDenoiser(config, 3, BEFORE_BLOCKS)


def test_a_missing_map_is_refused() -> None:
    model, inputs = denoiser(), Inputs()
    with pytest.raises(UsageError, match="reads a semantic map and got none"):
        model.encode_map(None)
    with pytest.raises(UsageError, match="give it what encode_map returns"):
        model(inputs.noisy, inputs.timesteps, inputs.guide, None)
    assert denoiser(None).encode_map(inputs.planes) is None


def base_unet() -> UNet2DConditionModel:
    torch.manual_seed(5)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=(2, 2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
    ).eval()


@torch.no_grad()
def test_a_loaded_base_model_predicts_what_it_did_before() -> None:
    base, text, inputs = base_unet(), torch.randn(1, 3, 12), Inputs()
    model = ConditionalDenoiser(SMALL, 5, PublishedQuirks()).eval()
    model.load_base(base.state_dict(), text)
    expected = base(inputs.noisy, inputs.timesteps, text.expand(3, -1, -1)).sample
    torch.testing.assert_close(run(model, inputs), expected, rtol=1e-4, atol=1e-5)
    assert not model.unet.conv_in.weight[:, 4:].any()
    assert torch.equal(model.unet.conv_in.bias, base.conv_in.bias)


def test_half_precision_base_weights_load_into_float32() -> None:
    model = ConditionalDenoiser(SMALL, None, PublishedQuirks())
    model.load_base(base_unet().half().state_dict(), torch.randn(1, 3, 12).half())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_base_model_of_another_shape_is_refused() -> None:
    model, text, weights = (
        ConditionalDenoiser(SMALL, None, PublishedQuirks()),
        torch.zeros(1, 3, 12),
        base_unet().state_dict(),
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BaseModelError, match=r"embedding is of shape \[1, 77, 12\], expected \[1, 3, 12\]"):
        model.load_base(weights, torch.zeros(1, 77, 12))
    with pytest.raises(BaseModelError, match=r"'conv_in.weight' is of shape \[8, 9, 3, 3\], expected \[8, 4, 3, 3\]"):
        model.load_base({**weights, "conv_in.weight": torch.zeros(8, 9, 3, 3)}, text)
    with pytest.raises(BaseModelError, match=r"lacks 'conv_out.bias'"):
        model.load_base({name: weight for name, weight in weights.items() if name != "conv_out.bias"}, text)
    with pytest.raises(BaseModelError, match=r"unknown 'class_embedding.weight'"):
        model.load_base({**weights, "class_embedding.weight": text}, text)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.slow
def test_the_unet_is_one_graph_for_the_compiler() -> None:
    config = dataclasses.replace(SMALL, channels=(8, 16), layers_per_block=1, attention_heads=(2, 2))
    model, inputs = ConditionalDenoiser(config, 5, PublishedQuirks()).eval(), Inputs()
    expected = run(model, inputs)
    model.unet.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(run(model, inputs), expected)


def test_attention_runs_in_torchs_fused_kernel() -> None:
    names = {type(processor).__name__ for processor in denoiser().unet.attn_processors.values()}
    assert names == {"AttnProcessor2_0"}
