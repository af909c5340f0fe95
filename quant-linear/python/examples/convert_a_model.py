"""A PyTorch model whose linear layers become FP4, and its state in a new model.

python convert_a_model.py
"""

import torch

from exact_fp4.torch import QuantLinear, convert


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(128, 256)
        self.down_proj = torch.nn.Linear(256, 128, bias=False)
        self.lm_head = torch.nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(x + self.down_proj(torch.relu(self.up_proj(x))))


torch.manual_seed(0)
model, x = Mlp().eval(), torch.randn(4, 128)
with torch.no_grad():
    dense = model(x)
    print(convert(model, "nvfp4"))  # heads stay dense, by the rules of `fp4 quantize`
    print(model)
    quantized = model(x)
    print(f"error {float((quantized - dense).norm() / dense.norm()):.4f}")

    # Empty layers take shape and format from the state.
    other = Mlp().eval()
    other.up_proj, other.down_proj = QuantLinear(128, 256), QuantLinear(256, 128, bias=False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), quantized)

    # One op in a compiled graph.
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), quantized)
print("loaded and compiled: the same bits")
