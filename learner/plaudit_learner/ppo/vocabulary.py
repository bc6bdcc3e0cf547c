"""What is asked of two distributions over the vocabulary at each token, without holding either of them.

As plain tensor operations the log-probabilities, their exponentials and the KL each are as large as the logits, in
float32, and autograd keeps most of them: a third of an update is spent on moving them. Here a few rows at a time are
worked on, in the processor's cache; what is kept for the gradient are the logits as they came.

Shapes: B replies, T reply tokens (padded on the right), V vocabulary, N real tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ROWS = 8  # of 49,152 float32: 1.5 MB each of the few tensors that are worked on


class Comparison(NamedTuple):
    """Of pi with the reference at each reply token; in nats, at one temperature, 0 at pads."""

    logprobs_BT: Tensor
    """Log-probability of the token under pi; differentiable."""
    kl_BT: Tensor
    """KL(pi || reference) of the next-token distributions, exact; differentiable."""
    entropy_BT: Tensor
    """Entropy of pi's."""
    ref_logprobs_BT: Tensor
    """Log-probability of the token under the reference."""


def compare(
    logits_BTV: Tensor, ref_logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor, temperature: float
) -> Comparison:
    """Compare pi with the reference at the real tokens. Gradients flow to `logits_BTV` only."""
    return Comparison(*_Compare.apply(logits_BTV, ref_logits_BTV, tokens_BT, mask_BT, temperature))


class _Compare(torch.autograd.Function):  # type: ignore[misc]
    """The formulas, with l = logits / temperature, Z = log sum_v exp l_v, p = exp(l - Z); l' and Z' the reference's.

    log p_v = l_v - Z; its gradient in l_u is [u = v] - p_u.
    KL = sum_v p_v (l_v - l'_v) - Z + Z'; its gradient in l_u is p_u (l_u - l'_u - sum_v p_v (l_v - l'_v)).
    """

    @staticmethod
    def forward(
        ctx: Any, logits_BTV: Tensor, ref_logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor, temperature: float
    ) -> tuple[Tensor, ...]:
        at_N = mask_BT.flatten().nonzero()[:, 0]
        found = torch.zeros(5, mask_BT.numel())
        logprobs, kl, entropy, ref_logprobs, normaliser = found
        for rows in at_N.split(_ROWS):
            ours_NV, theirs_NV = (_scaled(x, rows, temperature) for x in (logits_BTV, ref_logits_BTV))
            token_N1 = tokens_BT.flatten()[rows, None]
            normaliser[rows] = ours_NV.logsumexp(dim=1)
            ref_normaliser_N = theirs_NV.logsumexp(dim=1)
            logprobs[rows] = ours_NV.gather(1, token_N1)[:, 0] - normaliser[rows]
            ref_logprobs[rows] = theirs_NV.gather(1, token_N1)[:, 0] - ref_normaliser_N
            p_NV = (ours_NV - normaliser[rows, None]).exp_()
            entropy[rows] = normaliser[rows] - torch.linalg.vecdot(p_NV, ours_NV)
            gap_NV = ours_NV.sub_(theirs_NV)
            kl[rows] = torch.linalg.vecdot(p_NV, gap_NV) - normaliser[rows] + ref_normaliser_N
        ctx.save_for_backward(logits_BTV, ref_logits_BTV, tokens_BT, at_N, normaliser)
        ctx.temperature = temperature
        outputs = tuple(each.view(mask_BT.shape) for each in (logprobs, kl, entropy, ref_logprobs))
        ctx.mark_non_differentiable(*outputs[2:])
        return outputs

    @staticmethod
    def backward(ctx: Any, logprobs_grad_BT: Tensor, kl_grad_BT: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits_BTV, ref_logits_BTV, tokens_BT, at_N, normaliser = ctx.saved_tensors
        gradient_BTV = torch.zeros_like(logits_BTV)
        gradient = gradient_BTV.view(-1, logits_BTV.shape[-1])
        for rows in at_N.split(_ROWS):
            ours_NV, theirs_NV = (_scaled(x, rows, ctx.temperature) for x in (logits_BTV, ref_logits_BTV))
            logprobs_grad_N1, kl_grad_N1 = (x.flatten()[rows, None] for x in (logprobs_grad_BT, kl_grad_BT))
            p_NV = (ours_NV - normaliser[rows, None]).exp_()
            gap_NV = ours_NV.sub_(theirs_NV)
            gap_NV.sub_(torch.linalg.vecdot(p_NV, gap_NV)[:, None])
            gradient_NV = gap_NV.mul_(kl_grad_N1).sub_(logprobs_grad_N1).mul_(p_NV)
            gradient_NV.scatter_add_(1, tokens_BT.flatten()[rows, None], logprobs_grad_N1)
            gradient[rows] = gradient_NV.div_(ctx.temperature).to(gradient.dtype)
        return gradient_BTV, None, None, None, None


def _scaled(logits_BTV: Tensor, rows: Tensor, temperature: float) -> Tensor:
    return logits_BTV.flatten(0, 1)[rows].float().div_(temperature)
