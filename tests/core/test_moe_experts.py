"""The experts' matrix products, the layer around them, and what stands between routing and experts."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.distributed.ranges import Range
from diffulex_core.errors import ConfigError, IncompatibleError, UnknownNameError
from diffulex_core.host import Host
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe import ExpertsKernel, select_experts_kernel
from diffulex_core.kernels.moe.arrange import arrange
from diffulex_core.kernels.moe.fused import TritonExperts
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.layers.activations import ACTIVATIONS, sigmoid
from diffulex_core.layers.moe import Activation, MoESpec
from diffulex_core.layers.moe.dispatch import Dispatched, LocalDispatcher
from diffulex_core.layers.moe.experts import Experts
from diffulex_core.layers.moe.layer import MoE
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.testing.thread_group import ThreadGroup
from tests.core.config_kit import problems_of

CPU = torch.device("cpu")
KERNELS: Mapping[str, ExpertsKernel] = {"torch": TorchExperts(), "naive": NaiveExperts()}
EACH_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
SPEC = MoESpec(
    num_experts=8, experts_per_token=3, expert_size=20, router="sigmoid", num_groups=4, groups_kept=2, renormalize=True,
    scale=2.5, correction_bias=True, shared_size=28,
)  # fmt: skip
HIDDEN = 12
Array = NDArray[np.float64]


@attrs.frozen(kw_only=True, eq=False)
class Inputs:
    """The arguments of a kernel."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    w13: Tensor
    w2: Tensor

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        rows: int,
        slots: int,
        experts: int,
        hidden: int,
        size: int,
        dtype: torch.dtype = torch.float32,
    ) -> Inputs:
        """Random ids, some of them -1 and some twice in a row of slots; some weights are zero."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)

        weights = torch.rand(rows, slots, generator=generator)
        return cls(
            x=torch.randn(rows, hidden, generator=generator).to(dtype),
            ids=torch.randint(-1, experts, (rows, slots), generator=generator).int(),
            weights=weights.masked_fill(torch.rand(rows, slots, generator=generator) < 0.1, 0.0),
            w13=normal(experts, 2 * size, hidden),
            w2=normal(experts, hidden, size),
        )

    def run(self, kernel: ExpertsKernel, activation: Activation = "silu") -> Tensor:
        return kernel(self.x, self.ids, self.weights, self.w13, self.w2, activation)


def gate_by_hand(values: Array, activation: Activation) -> Array:
    if activation == "silu":
        return values / (1 + np.exp(-values))
    return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))


def by_hand(inputs: Inputs, activation: Activation) -> Array:
    """The definition in double precision."""
    x, w13, w2 = (tensor.double().numpy() for tensor in (inputs.x, inputs.w13, inputs.w2))
    out = np.zeros(x.shape)
    for row, (ids, weights) in enumerate(zip(inputs.ids.tolist(), inputs.weights.tolist(), strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            if expert >= 0:
                gate, up = np.split(w13[expert] @ x[row], 2)
                out[row] += weight * (w2[expert] @ (gate_by_hand(gate, activation) * up))
    return out


@EACH_KERNEL
@given(
    rows=st.integers(0, 20), slots=st.integers(1, 4), experts=st.integers(1, 6), hidden=st.integers(1, 17),
    size=st.integers(1, 13), activation=st.sampled_from(["silu", "gelu_tanh"]), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40)
def test_every_row_is_the_weighted_sum_over_its_experts(
    kernel: ExpertsKernel,
    rows: int,
    slots: int,
    experts: int,
    hidden: int,
    size: int,
    activation: Activation,
    seed: int,
) -> None:
    inputs = Inputs.draw(seed, rows=rows, slots=slots, experts=experts, hidden=hidden, size=size)
    found = inputs.run(kernel, activation)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), by_hand(inputs, activation), atol=1e-5, rtol=1e-5)


@EACH_KERNEL
def test_a_slot_without_expert_or_weight_contributes_nothing_whatever_its_expert_holds(kernel: ExpertsKernel) -> None:
    inputs = Inputs.draw(1, rows=6, slots=2, experts=3, hidden=8, size=5)
    inputs.ids.copy_(torch.tensor([[0, 1]] * 6))
    inputs.weights[:, 1] = 0.0
    expected = inputs.run(kernel)
    inputs.ids[3:, 1] = -1
    for tensor in (inputs.w13, inputs.w2):
        tensor[1:] = torch.nan
    assert torch.equal(inputs.run(kernel), expected)


@EACH_KERNEL
def test_a_weight_that_is_not_a_number_is_not_hidden(kernel: ExpertsKernel) -> None:
    inputs = Inputs.draw(1, rows=3, slots=2, experts=3, hidden=8, size=5)
    inputs.ids.fill_(0)
    inputs.weights.fill_(1.0)
    inputs.weights[1, 1] = torch.nan
    assert inputs.run(kernel).isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(rows=st.integers(1, 40), place=st.integers(0, 39), hidden=st.sampled_from([8, 12, 36]), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_a_rows_bits_do_not_depend_on_its_batch_mates(
    dtype: torch.dtype, rows: int, place: int, hidden: int, seed: int
) -> None:
    """The widths are multiples of 4: with others the fp32 product itself looks at the parity of a row's place."""
    place %= rows
    many = Inputs.draw(seed, rows=rows, slots=3, experts=4, hidden=hidden, size=12, dtype=dtype)
    one = attrs.evolve(many, x=many.x[place, None], ids=many.ids[place, None], weights=many.weights[place, None])
    kernel = TorchExperts()
    assert torch.equal(one.run(kernel)[0], many.run(kernel)[place])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_is_near_the_fp32_reference(dtype: torch.dtype, bound: float) -> None:
    """Relative to the largest output: activations are rounded to 8 (bf16) or 11 (fp16) bits, sums are not."""
    inputs = Inputs.draw(3, rows=33, slots=3, experts=5, hidden=40, size=24, dtype=dtype)
    found, exact = inputs.run(TorchExperts()), torch.from_numpy(by_hand(inputs, "silu"))
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() < bound * exact.abs().max()


def test_activations_are_torchs_own_and_their_bits_do_not_depend_on_the_place() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(
        ACTIVATIONS["gelu_tanh"](x), functional.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(ACTIVATIONS["silu"](x), functional.silu(x), atol=1e-6, rtol=1e-5)
    for act in (*ACTIVATIONS.values(), sigmoid):
        whole = act(x)
        assert all(torch.equal(act(x[start : start + length]), whole[start : start + length])
                   for start in range(0, 40, 3) for length in (1, 5, 8, 31))  # fmt: skip
        assert act(torch.tensor([-1e30, 1e30])).isfinite().all()


@given(
    rows=st.integers(0, 60), slots=st.integers(1, 4), experts=st.integers(1, 9), tile=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_an_arrangement_has_every_slot_once_in_a_tile_of_its_expert(
    rows: int, slots: int, experts: int, tile: int, seed: int
) -> None:
    ids = torch.randint(-1, experts, (rows, slots), generator=torch.Generator().manual_seed(seed)).int()
    plan = arrange(ids, torch.ones(rows, slots), experts, tile)
    tiles = plan.slot_of_row.view(-1, tile)
    assert len(tiles) == len(plan.expert_of_tile)
    flat, seen = ids.flatten().tolist(), list[int]()
    for expert, members in zip(plan.expert_of_tile.tolist(), tiles.tolist(), strict=True):
        used = [slot for slot in members if slot >= 0]
        assert members == used + [-1] * (tile - len(used))
        assert {flat[slot] for slot in used} <= {expert}
        assert bool(used) == (expert >= 0)
        seen += used
    assert seen == sorted((slot for slot, expert in enumerate(flat) if expert >= 0), key=lambda slot: flat[slot])


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module


def layer(spec: MoESpec = SPEC, **ctx: Any) -> MoE:
    made = MoE(BuildContext(dtype=torch.float32, device=CPU, **ctx), HIDDEN, spec)
    fill(made)
    return made


def tokens(count: int, seed: int = 5) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def layer_by_hand(made: MoE, x: Tensor) -> Tensor:
    """Routed and shared experts, token by token, in double precision, with the layer's own choice of experts."""
    ids, weights = made.router(x)
    inputs = Inputs(x=x, ids=ids, weights=weights, w13=made.experts.w13, w2=made.experts.w2)
    out = torch.from_numpy(by_hand(inputs, made.experts.activation))
    if made.shared is not None:
        gate, up = (x.double() @ made.shared.gate_up.weight.double().T).chunk(2, dim=-1)
        gated = torch.from_numpy(gate_by_hand(gate.numpy(), made.experts.activation)) * up
        out += gated @ made.shared.down.weight.double().T
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_size": 0},
        {"activation": "gelu_tanh"},
        {"experts_per_token": 8, "num_groups": 1},
        {"experts_per_token": 1, "num_experts": 1, "num_groups": 1},
        {"num_groups": 3},
        {"router": "softmax", "num_groups": 1, "correction_bias": False, "scale": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 5, 16])
def test_the_layer_adds_its_routed_and_shared_experts(changes: dict[str, Any], count: int) -> None:
    made = layer(attrs.evolve(SPEC, **changes))
    x = tokens(count)
    torch.testing.assert_close(made(x).double(), layer_by_hand(made, x), atol=1e-5, rtol=1e-5)


@given(mates=st.integers(0, 40), padding=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_padding_rows_and_batch_mates_change_no_bit_of_the_layers_output(mates: int, padding: int, seed: int) -> None:
    made, own = layer(), tokens(3)
    alone = made(torch.cat((own, torch.zeros(5, HIDDEN))))[:3]
    batch = torch.cat((tokens(mates, seed), own, torch.zeros(padding, HIDDEN)))
    batch = torch.cat((batch, torch.zeros(-len(batch) % 8, HIDDEN)))
    assert torch.equal(made(batch)[mates : mates + 3], alone)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_ranks_hold_whole_experts_and_their_addends_are_summed_once(size: int) -> None:
    x = tokens(16)
    group = ThreadGroup(size)

    def work(tp: Communicator) -> Tensor:
        share = MoE(BuildContext(dtype=torch.float32, device=CPU, tp=tp), HIDDEN, attrs.evolve(SPEC, shared_size=16))
        take_share(share, whole_layer, tp)
        return share(x)

    whole_layer = layer(attrs.evolve(SPEC, shared_size=16))
    expected = whole_layer(x)
    for found in group.run(work):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [call.kind for call in group.log] == ["sum"]


def take_share(share: MoE, whole_layer: MoE, tp: Communicator) -> None:
    """Cut a rank's weights out of those of the whole layer."""
    share.router.load_state_dict(whole_layer.router.state_dict())
    experts = slice(tp.rank * 8 // tp.size, (tp.rank + 1) * 8 // tp.size)
    share.experts.w13.copy_(whole_layer.experts.w13[experts])
    share.experts.w2.copy_(whole_layer.experts.w2[experts])
    assert share.shared is not None
    assert whole_layer.shared is not None
    gate, up = (part.chunk(tp.size)[tp.rank] for part in whole_layer.shared.gate_up.weight.chunk(2))
    share.shared.gate_up.weight.copy_(torch.cat((gate, up)))
    share.shared.down.weight.copy_(whole_layer.shared.down.weight.chunk(tp.size, dim=1)[tp.rank])


def test_experts_that_cannot_be_divided_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size 3 does not divide the number of experts, which is 8"):
        layer(tp=Seat(0, 3))


def test_the_standard_dispatcher_leaves_the_slots_of_foreign_experts_to_their_holders() -> None:
    ids, weights = torch.tensor([[0, 5, -1], [4, 3, 7]]).int(), torch.ones(2, 3)
    x = tokens(2)
    sent = LocalDispatcher(Range(4, 2, 8)).dispatch(x, ids, weights)
    assert sent.ids.tolist() == [[-1, 1, -1], [0, -1, -1]]
    assert sent.ids.dtype == torch.int32
    assert LocalDispatcher(Range(0, 8, 8)).dispatch(x, ids, weights).ids.tolist() == ids.tolist()


@attrs.frozen(kw_only=True, eq=False)
class Sent(Dispatched):
    """Rows of all ranks, and how many each gave."""

    own: int


@attrs.frozen
class Exchange:
    """Each rank routes the rows `rank, rank + size, ...` and every rank computes its experts for all of them."""

    tp: Communicator
    held: Range

    def dispatch(self, x: Tensor, ids: Tensor, weights: Tensor) -> Sent:
        most = -(-len(x) // self.tp.size)
        own = x[self.tp.rank :: self.tp.size]
        missing = most - len(own)
        mine = functional.pad(own, (0, 0, 0, missing))
        choice = functional.pad(ids[self.tp.rank :: self.tp.size], (0, 0, 0, missing), value=-1)
        factor = functional.pad(weights[self.tp.rank :: self.tp.size], (0, 0, 0, missing))
        received = LocalDispatcher(self.held).dispatch(
            self.tp.gather(mine).flatten(0, 1),
            self.tp.gather(choice).flatten(0, 1),
            self.tp.gather(factor).flatten(0, 1),
        )
        return Sent(x=received.x, ids=received.ids, weights=received.weights, own=len(x))

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        assert isinstance(dispatched, Sent)
        mine = self.tp.gather(outputs).sum(0).unflatten(0, (self.tp.size, -1))[self.tp.rank]
        whole = outputs.new_zeros(dispatched.own, outputs.shape[1])
        whole[self.tp.rank :: self.tp.size] = mine[: len(whole[self.tp.rank :: self.tp.size])]
        return whole


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_a_dispatcher_that_moves_rows_between_processes_fits_between_routing_and_experts(rows: int) -> None:
    spec = attrs.evolve(SPEC, shared_size=16)
    whole_layer, x = layer(spec), tokens(rows)
    expected = whole_layer(x)

    def work(tp: Communicator) -> Tensor:
        share = MoE(BuildContext(dtype=torch.float32, device=CPU, tp=tp), HIDDEN, spec)
        take_share(share, whole_layer, tp)
        share.dispatcher = Exchange(tp, share.experts.held)
        return share(x)

    for found in ThreadGroup(4).run(work):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@attrs.frozen
class Doubled:
    """A plugin's kernel: twice what is right, so that its use shows."""

    def reasons(self, case: KernelCase) -> list[str]:
        return ["it is for tests on the CPU"] if case.device_type != "cpu" else []

    def priority(self, case: KernelCase) -> int:
        return -1

    def __call__(self, *args: Any) -> Tensor:
        return 2 * NaiveExperts()(*args)


def host(*, register: bool = False) -> Host:
    module = ModuleType("moe_test_plugin")

    @hookimpl
    def diffulex_register_components(register: Any) -> None:
        register(
            Component(kind="kernel", name="moe_gemm.doubled", factory=f"{__name__}:Doubled", aliases=("moe_gemm.x2",))
        )

    if register:
        vars(module)["diffulex_register_components"] = diffulex_register_components
    return Host.discover([], {}, extra=[module])


ON_CPU = KernelCase(device_type="cpu", dtype=torch.float32)
ON_GPU = KernelCase(device_type="cuda", dtype=torch.bfloat16)


def test_auto_takes_torch_on_the_cpu_and_triton_on_a_gpu() -> None:
    assert isinstance(select_experts_kernel("auto", host(), ON_CPU), TorchExperts)
    assert isinstance(select_experts_kernel("auto", host(), ON_GPU), TritonExperts)


def test_auto_takes_torch_on_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffulex_core.kernels.on_triton.find_spec", lambda name: None)
    assert isinstance(select_experts_kernel("auto", host(), ON_GPU), TorchExperts)
    with pytest.raises(
        IncompatibleError, match=r"'triton' cannot serve here: triton is not installed .*: torch, naive"
    ):
        select_experts_kernel("triton", host(), ON_GPU)


@pytest.mark.parametrize(("name", "kind"), [("torch", TorchExperts), ("naive", NaiveExperts), ("doubled", Doubled)])
def test_a_kernel_can_be_named_also_one_of_a_plugin(name: str, kind: type) -> None:
    assert isinstance(select_experts_kernel(name, host(register=True), ON_CPU), kind)


def test_a_named_kernel_that_cannot_serve_is_an_error_with_reason_and_alternatives() -> None:
    with pytest.raises(IncompatibleError, match="'triton' cannot serve here: it runs on CUDA devices, not on 'cpu'"):
        select_experts_kernel("triton", host(), ON_CPU)
    with pytest.raises(IncompatibleError, match=r"it is for tests on the CPU\. Those that can: triton, torch, naive\."):
        select_experts_kernel("doubled", host(register=True), ON_GPU)
    with pytest.raises(UnknownNameError, match=r"moe_gemm\.cutlass"):
        select_experts_kernel("cutlass", host(), ON_CPU)


def test_experts_ask_for_the_kernel_when_they_are_built_and_use_it() -> None:
    asked = []

    def choose() -> ExpertsKernel:
        asked.append(1)
        return Doubled()

    spec = attrs.evolve(SPEC, shared_size=0)
    usual, doubled = layer(spec), layer(spec, experts_kernel=choose)
    assert asked == [1]
    torch.testing.assert_close(doubled(tokens(4)), 2 * usual(tokens(4)))


@pytest.mark.parametrize("name", ["vllm", "vllm_modular"])
def test_vllms_kernels_are_refused_with_what_to_use_instead(name: str) -> None:
    [problem] = problems_of({"moe_gemm_impl": name})
    assert f"moe_gemm_impl is '{name}'" in problem
    assert "vLLM's kernels are not part of diffulex; use 'triton' on CUDA devices, 'torch' elsewhere" in problem


def test_experts_without_values_take_no_memory_on_the_meta_device() -> None:
    ctx = BuildContext(dtype=torch.bfloat16, device=torch.device("meta"), tp=ALONE)
    made = Experts(ctx, num_experts=256, hidden_size=4096, expert_size=1024, activation="silu")
    assert made.w13.is_meta
    assert (made.w13.dtype, tuple(made.w13.shape)) == (torch.bfloat16, (256, 2048, 4096))
