"""From the width of the ViT to the width of a language model's embeddings."""

from torch import nn

from vivid_monai.errors import VividError


class Projector(nn.Sequential):
    """Linear → GELU → Dropout → Linear → LayerNorm, one for all embeddings (VIVID-Med, arXiv:2603.09109).

    Maps (…, dim) to (…, out_dim).
    """

    def __init__(self, dim: int, out_dim: int, *, hidden: int | None = None, dropout: float = 0.1) -> None:
        """
        Args:
            dim: width of the ViT.
            out_dim: width the teacher takes (`teacher.embed_dim`).
            hidden: width between the two layers; 2 * dim where not given.
            dropout: probability in [0, 1) of dropping a hidden unit while training.

        Raises:
            VividError: an argument is out of its range.
        """
        hidden = 2 * dim if hidden is None else hidden
        if min(dim, out_dim, hidden) < 1 or not 0 <= dropout < 1:
            raise VividError(
                f"dim={dim}, out_dim={out_dim} and hidden={hidden} must be positive, dropout={dropout} in [0, 1)"
            )
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out_dim), nn.LayerNorm(out_dim)
        )
        self.dim = dim
        self.out_dim = out_dim
