"""From the width of the ViT to the width of a language model's embeddings."""

from torch import nn

from vivid_monai.errors import VividError


class Projector(nn.Sequential):
    """Linear → GELU → Dropout → Linear → LayerNorm, one for all embeddings (VIVID-Med, arXiv:2603.09109).

    Maps (…, dim) to (…, out_dim).
    """

    def __init__(
        self, dim: int, out_dim: int, *, hidden: int | None = None, dropout: float = 0.1, scale: float = 1.0
    ) -> None:
        """
        Args:
            dim: width of the ViT.
            out_dim: width the teacher takes (`teacher.embed_dim`).
            hidden: width between the two layers; 2 * dim where not given.
            dropout: probability in [0, 1) of dropping a hidden unit while training.
            scale: root mean square of an embedding at the start, > 0: the last LayerNorm's first weight. A language
                model has only met embeddings as large as its own tokens' (`teacher.embed_scale`).

        Raises:
            VividError: an argument is out of its range.
        """
        hidden = 2 * dim if hidden is None else hidden
        if min(dim, out_dim, hidden) < 1 or not 0 <= dropout < 1 or scale <= 0:
            raise VividError(
                f"dim={dim}, out_dim={out_dim}, hidden={hidden} and scale={scale} must be positive, "
                f"dropout={dropout} in [0, 1)"
            )
        norm = nn.LayerNorm(out_dim)
        nn.init.constant_(norm.weight, scale)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out_dim), norm)
        self.dim = dim
        self.out_dim = out_dim
