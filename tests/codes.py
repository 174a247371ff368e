"""A stand-in for tensors of libraries that quantise."""

import torch
from torch import nn


class Codes(torch.Tensor):
    """int8 numbers with a scale for each row behind a tensor that says it is of a longer type, as torchao and quanto keep them."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    def dequantize(self):
        return self.codes.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].codes, args[0].scale)
        read = [a.dequantize() if isinstance(a, Codes) else a for a in args]
        return func(*read, **(kwargs or {}))


def coded(model, part=""):
    """The model with codes in the linear maps of one of its parts, by path; not in a head that is the table of words."""
    for module in list(model.get_submodule(part).modules()):
        if isinstance(module, nn.Linear) and module.weight is not model.get_input_embeddings().weight:
            w = module.weight.detach()
            scale = w.abs().amax(1, keepdim=True) / 7
            module.weight = nn.Parameter(Codes((w / scale).round().to(torch.int8), scale), requires_grad=False)
    return model
