"""The operations of fields in PyTorch, and the two programs from a solve."""

import torch
from torch.nn import functional


class Operations:
    """Images are `[B, channels, height, width]`, which is faster here."""

    tanh, square, concatenate, ones_like, mean = torch.tanh, torch.square, torch.cat, torch.ones_like, torch.mean

    @staticmethod
    def dense(y, weight, bias):
        return torch.addmm(bias, y, weight)

    @staticmethod
    def conv(y, kernel, bias):
        return functional.conv2d(y, kernel, bias, padding="same")


def tensors(workload):
    """The state, the times and the weights, with images and kernels as PyTorch has them."""
    y0, *weights = (torch.from_numpy(x) for x in (workload.y0, *workload.weights))
    if y0.ndim == 4:
        y0 = y0.permute(0, 3, 1, 2).contiguous()
        weights = [w.permute(3, 2, 0, 1).contiguous() if w.ndim == 4 else w for w in weights]
    return y0.requires_grad_(), torch.from_numpy(workload.times), tuple(w.requires_grad_() for w in weights)


def programs(workload, solve, y0, weights, options):
    """`train` and `infer` from `solve()`, the states after the start."""
    torch.set_num_threads(options["threads"])

    def train():
        loss = workload.loss(Operations, solve())
        return loss.detach(), torch.autograd.grad(loss, (y0, *weights)), {}

    def infer():
        with torch.no_grad():
            return workload.loss(Operations, solve())

    return train, infer
