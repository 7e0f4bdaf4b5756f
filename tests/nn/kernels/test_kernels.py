"""Each fast function against a plain one: outputs and gradients."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.nn.kernels.comparing import (
    MANY,
    assert_same_function,
    close,
    dtypes,
    exact_losses,
    laid_out,
    layouts,
    sampled_losses,
    seeds,
    under_autocast,
    widths,
)
from transformer_elmo.nn.kernels import attention, character_cnn
from transformer_elmo.nn.kernels import linear as linear_kernel
from transformer_elmo.nn.kernels import softmax as token_losses
from transformer_elmo.nn.kernels.attention import causal_attention, written_out_attention
from transformer_elmo.nn.kernels.character_cnn import max_over_windows
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.gather_rows import gather_rows
from transformer_elmo.nn.kernels.layer_norm import layer_norm
from transformer_elmo.nn.kernels.linear import linear, product
from transformer_elmo.nn.kernels.sparse_gradients import clip_norm, merged_rows
from transformer_elmo.nn.kernels.weight_casts import cast_weights

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
ways = st.sampled_from(["", "autocast", "device", "device, autocast"])

# Products with weights.


@MANY
@given(seeds, st.integers(0, 70), widths, widths, dtypes, layouts, layouts)
def test_linear(seed, num_rows, input_dim, output_dim, dtype, of_rows, of_weight):
    torch.manual_seed(seed)
    rows = laid_out(torch.randn(num_rows, input_dim).to(dtype), of_rows)
    weight = laid_out(torch.randn(output_dim, input_dim).to(dtype), of_weight)
    bias = torch.randn(output_dim).to(dtype)
    made = assert_same_function(linear, F.linear, [rows, weight, bias], tolerance=TOLERANCE[dtype])
    assert made.dtype == product(rows, weight).dtype == dtype
    assert close(product(rows, weight), rows.float() @ weight.float().t(), TOLERANCE[dtype])


@pytest.mark.parametrize("wanted", range(3))
def test_linear_makes_only_gradients_that_are_asked_for(wanted):
    tensors = [torch.randn(8, 3), torch.randn(2, 3), torch.randn(2)]
    tensors[wanted].requires_grad_()
    with mock.patch.object(linear_kernel, "product", wraps=product) as made:
        # The gradient of a sum is a single number, expanded.
        linear(*tensors).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [n == wanted for n in range(3)]
    assert made.call_count == 1 + (wanted < 2)


# Attention.


def attention_by_definition(query, key, value, factors):
    future = torch.full((query.size(2),) * 2, -math.inf).triu(1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1)) + future
    return (scores.softmax(-1) * factors) @ value


@MANY
@given(
    *(seeds, st.integers(0, 3), st.integers(1, 3), st.integers(0, 11), st.integers(1, 9), dtypes),
    *(st.sampled_from([causal_attention, written_out_attention]), st.booleans(), st.booleans()),
    st.booleans(),
)
def test_attention(
    seed, batch, heads, timesteps, dim, dtype, way, any_size_in_memory, beside_each_other, drops
):
    torch.manual_seed(seed)
    tensors = list(torch.randn(3, batch, heads, timesteps, dim).to(dtype))
    if beside_each_other:
        # As a layer has them: one product made all three, a token at a time.
        rows = torch.randn(batch, timesteps, 3, heads, dim).to(dtype)
        tensors = list(rows.permute(2, 0, 3, 1, 4))
    dropout = Dropout(0.4).train(drops)
    torch.manual_seed(seed)
    # What remains of a probability is scaled up, and the rest of them are as they were.
    factors = dropout(torch.ones(batch * heads, timesteps, timesteps)).unflatten(0, (batch, heads))

    def fast(*tensors):
        torch.manual_seed(seed)
        return way(*tensors, dropout)

    bound = 2**25 if any_size_in_memory else -1
    with mock.patch.object(attention, "SCORES_IN_MEMORY", bound):
        assert fast(*(1000 * tensor for tensor in tensors)).isfinite().all()
        made = assert_same_function(
            *(fast, lambda *heads: attention_by_definition(*heads, factors), tensors),
            tolerance=TOLERANCE[dtype],
        )
    assert made.dtype == dtype


# Convolutions of characters.


def convolved(characters, *flat):
    columns = characters.transpose(1, 2)
    pairs = zip(flat[::2], flat[1::2])
    return torch.cat([F.conv1d(columns, w, b).amax(-1) for w, b in pairs], dim=-1)


@pytest.mark.parametrize("way", [max_over_windows, character_cnn._all_widths])
@MANY
@given(
    *(seeds, st.integers(0, 6), st.integers(1, 9), layouts),
    *(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6)), min_size=1, max_size=5),),
    st.integers(0, 6),
)
def test_windows(way, seed, num_words, dim, layout, shapes, spare):
    torch.manual_seed(seed)
    # From words that the widest filter just fits in.
    length = max(width for width, _ in shapes) + spare
    tensors = [laid_out(torch.randn(num_words, length, dim), layout)]
    for width, number in shapes:
        tensors += [torch.randn(number, dim, width), torch.randn(number)]

    def fast(characters, *flat):
        return way(characters, list(zip(flat[::2], flat[1::2])))

    made = assert_same_function(fast, convolved, tensors)
    # In bfloat16 another window may be the largest: its gradient is another one.
    rounded = fast(*(tensor.bfloat16() for tensor in tensors))
    assert rounded.dtype == torch.bfloat16 and close(rounded, made, 3e-2)


# Layer normalization.


def normalized(rows, gamma, beta):
    """From the definition."""
    variance, mean = torch.var_mean(rows.float(), dim=-1, correction=0, keepdim=True)
    normed = (rows.float() - mean) / variance.sqrt().clamp_min(1e-13)
    return (normed * gamma.float() + beta.float()).to(rows.dtype)


@MANY
@given(
    *(seeds, st.integers(0, 9), widths, dtypes, layouts, st.sampled_from([0.0, 1e-6, 1.0, 1e4])),
    *(st.booleans(), ways),
)
def test_layer_norm(seed, num_rows, dim, dtype, layout, scale, same_type, way):
    assume(dim > 1)
    torch.manual_seed(seed)
    rows = laid_out((torch.randn(num_rows, dim) * scale).to(dtype), layout)
    gamma, beta = torch.randn(2, dim)
    if same_type:
        gamma, beta = gamma.to(dtype), beta.to(dtype)
    fast = under_autocast(layer_norm) if "autocast" in way else layer_norm
    # Deviations near zero make gradients as large as their errors.
    tolerance = TOLERANCE[dtype] * (20 if dim < 4 else 3)
    made = fast(rows, gamma, beta)
    assert made.dtype == dtype and close(made, normalized(rows, gamma, beta), tolerance)
    if scale == 1.0 and dim > 3:
        inputs = [rows, gamma, beta]
        made = assert_same_function(
            fast, normalized, inputs, tolerance=tolerance, on_a_device="device" in way
        )
        assert made.dtype == dtype


# Rows taken to other places.


@MANY
@given(seeds, st.integers(0, 20), st.integers(0, 20), st.integers(0, 5), dtypes, layouts)
def test_moved_rows(seed, num_rows, num_moved, dim, dtype, layout):
    torch.manual_seed(seed)
    num_moved = min(num_moved, num_rows)
    source = laid_out(torch.randn(num_rows, dim, 3).to(dtype), layout)
    index = torch.randperm(num_rows)[:num_moved]
    plain = torch.Tensor.__getitem__
    made = assert_same_function(gather_rows, plain, [source], index, tolerance=0)
    assert made.dtype == dtype
    # To every place, and back.
    order = torch.randperm(num_rows)
    assert_same_function(
        lambda rows: gather_rows(rows, order, order.argsort()),
        lambda rows: rows[order],
        [source],
        tolerance=0,
    )


def test_moved_rows_some_of_which_do_not_matter():
    """A place without a token has the first one's row, and no gradient comes from it."""
    source = torch.randn(3, 2, requires_grad=True)
    places = gather_rows(source, torch.tensor([0, 2, 0, 1, 0]), torch.tensor([0, 3, 1]))
    assert torch.equal(places, source[[0, 2, 0, 1, 0]])
    grad = torch.randn(5, 2)
    places.backward(grad)
    assert torch.equal(source.grad, grad[[0, 3, 1]])


# Weights in another precision.


@MANY
@given(
    *(seeds, dtypes, dtypes),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(1, 7),
    st.booleans(),
)
def test_in_precision(seed, from_type, to_type, sizes, dim, of_matrices):
    torch.manual_seed(seed)
    rest = (dim, 2) if of_matrices else ()
    groups = [
        [torch.randn(size, *rest).to(from_type).requires_grad_() for size in group]
        for group in sizes
    ]
    flat = [weight for group in groups for weight in group]
    made = cast_weights(to_type, groups)
    plain = [torch.cat(group).to(to_type) for group in groups]
    assert [tensor.dtype for tensor in made] == [to_type] * len(groups)
    assert all(map(torch.equal, made, plain))
    for tensor, group in zip(made, groups):
        # Nothing is made where there is nothing to do, and all that is cast begins where products
        # like it, in one stretch of memory.
        assert (tensor is group[0]) == (len(group) == 1 and from_type == to_type)
        assert from_type == to_type or tensor.storage_offset() % 16 == 0
    assert from_type == to_type or len({t.untyped_storage().data_ptr() for t in made}) == 1
    # Not all of them are used, and what isn't has no gradient.
    found, wanted = (
        torch.autograd.grad(results[-1].square().sum(), flat, allow_unused=True)
        for results in (made, plain)
    )
    for ours, theirs in zip(found, wanted):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == from_type and torch.equal(ours, theirs))


# Gradients of few rows.


@MANY
@given(seeds, st.integers(0, 12), st.integers(1, 5), st.integers(1, 12))
def test_merged_rows(seed, num_rows, dim, num_parameters):
    torch.manual_seed(seed)
    ids, values = torch.randint(num_parameters, (num_rows,)), torch.randn(num_rows, dim, 2)
    sums = torch.zeros(num_parameters, dim, 2).index_add(0, ids, values)
    assert close(merged_rows(ids, values), sums[ids], 1e-6)


@MANY
@given(seeds, st.sampled_from([1e-3, 0.5, 1e3]), st.booleans())
def test_clip_norm(seed, max_norm, coalesced):
    torch.manual_seed(seed)
    dense, without, sparse = (torch.zeros(*s, requires_grad=True) for s in ((3, 4), (2,), (9, 2)))
    dense.grad = torch.randn(3, 4)
    rows = torch.sparse_coo_tensor(torch.tensor([[7, 1, 7]]), torch.randn(3, 2), (9, 2))
    sparse.grad = rows.coalesce() if coalesced else rows
    plain = [torch.zeros_like(dense), torch.zeros_like(sparse)]
    plain[0].grad, plain[1].grad = dense.grad.clone(), rows.to_dense()
    wanted = torch.nn.utils.clip_grad_norm_(plain, max_norm)
    assert torch.allclose(clip_norm([dense, without, sparse], max_norm), wanted)
    assert without.grad is None and sparse.grad.is_sparse
    for ours, theirs in zip((dense, sparse), plain):
        assert close(ours.grad.to_dense(), theirs.grad, 1e-6)


# The losses of tokens.


def losses_case(seed, num_tokens, num_words, dim):
    torch.manual_seed(seed)
    embeddings, weight = torch.randn(num_tokens, dim), torch.randn(num_words, dim)
    return embeddings, weight, torch.randn(num_words), torch.randint(num_words, (num_tokens,))


some = st.sampled_from([(0, 1, 2), (0,), (2,), (1, 2)])


@MANY
@given(
    *(seeds, st.integers(1, 9), st.integers(1, 19), st.integers(1, 7), layouts, layouts, dtypes),
    *(st.integers(5, 60), st.integers(1, 6), ways, some),
)
def test_exact_losses(
    seed,
    num_tokens,
    num_words,
    dim,
    of_rows,
    of_weight,
    dtype,
    memory,
    tokens_at_once,
    way,
    learned,
):
    embeddings, weight, bias, targets = losses_case(seed, num_tokens, num_words, dim)
    inputs = [laid_out(embeddings, of_rows), laid_out(weight, of_weight), bias]
    inputs = [tensor.to(dtype) for tensor in inputs]
    fast, on_a_device = token_losses.exact_token_losses, "device" in way
    if "autocast" in way:
        fast = under_autocast(fast)
    sizes, plain = [], token_losses._logits

    def noting(*args):
        logits = plain(*args)
        sizes.append(logits.numel())
        return logits

    # The bound of the device that computes, and not the other one's.
    mine, other = ("GPU", "CPU") if on_a_device else ("CPU", "GPU")
    bounds = {f"{mine}_LOGITS_IN_MEMORY": memory, f"{other}_LOGITS_IN_MEMORY": 10**6}
    bounds["TOKENS_PER_BLOCK"] = tokens_at_once
    with mock.patch.multiple(token_losses, _logits=noting, **bounds):
        losses = assert_same_function(
            *(fast, exact_losses, inputs, targets),
            tolerance=1e-5 if dtype == torch.float32 and "autocast" not in way else 6e-2,
            on_a_device=on_a_device,
            learned=learned,
        )
    assert losses.dtype == torch.float32
    # The backward pass makes every block once more.
    assert max(sizes) <= max(memory, tokens_at_once) and sum(sizes) == 2 * num_tokens * num_words
    embeddings, weight, bias = (1000 * inputs[0].float(), *map(torch.Tensor.float, inputs[1:]))
    large = token_losses.exact_token_losses(embeddings, weight, bias, targets)
    assert close(large, exact_losses(embeddings, weight, bias, targets), 1e-3)


@MANY
@given(
    *(seeds, st.integers(0, 13), st.integers(2, 29), st.integers(1, 7), st.integers(1, 9), dtypes),
    *(st.integers(1, 40), ways, st.booleans(), st.booleans(), some),
)
def test_sampled_losses(
    seed, num_tokens, num_words, dim, num_samples, dtype, memory, way, sparse, column_bias, learned
):
    assume(num_samples < num_words)
    *inputs, targets = losses_case(seed, num_tokens, num_words, dim)
    if column_bias:
        # AllenNLP's layout of the bias of sparse weights.
        inputs[2] = inputs[2].unsqueeze(-1)
    sampled_ids = torch.randperm(num_words)[:num_samples].sort().values
    log_counts = torch.randn(num_tokens + num_samples)
    fast = token_losses.sampled_token_losses
    if "autocast" in way:
        fast = under_autocast(fast)
    bounds = {"CPU_LOGITS_IN_MEMORY": memory, "GPU_LOGITS_IN_MEMORY": memory}
    with mock.patch.multiple(token_losses, **bounds):
        losses = assert_same_function(
            *(fast, sampled_losses, [tensor.to(dtype) for tensor in inputs]),
            *(targets, sampled_ids, log_counts, sparse),
            tolerance=2e-5 if dtype == torch.float32 and "autocast" not in way else 6e-2,
            on_a_device="device" in way,
            learned=learned,
        )
    assert losses.dtype == torch.float32
