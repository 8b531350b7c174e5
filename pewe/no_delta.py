"""What the forward asks of a delta, with the answers of none."""

from torch import Tensor
from transformers import PreTrainedModel

from pewe.packing import Layout


class NoDelta:
    """What a forward asks of a delta; this one changes nothing. Names are those of the model's modules."""

    stack = 1
    counts_padding = False  # padding must stand in the line, because something counts it

    def __init__(self, model: PreTrainedModel):
        self.backbone_model = model

    def project(self, name: str, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        """What becomes of y = x W^T of the linear layer `name`; lines (N, d_in), (N, d_out)."""
        return y

    def after(self, name: str, hidden: Tensor, layout: Layout) -> Tensor:
        """What becomes of the output of the sub-layer `name` (an attention or a feed-forward), a line (N, d)."""
        return hidden

    def prefix(self, side: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values in front of those of a self-attention, (K, heads, P, d_kv) each."""
        return None

    def prompt(self) -> Tensor | None:
        """Positions (P, d) in front of the encoder's input."""
        return None

    def held(self, side: str) -> int:
        """Numbers that this keeps of each token of a side for the way back, beside the backbone's (`pewe/tuning/memory.py`)."""
        return 0

    def start(self, layout: Layout, prompt: int) -> None:
        """Is told of the layout that the encoder works on, `prompt` positions of each row being the prompt's."""

    def encoded(self, hidden: Tensor) -> None:
        """Is told of the encoder's output on that layout, (N, d)."""
