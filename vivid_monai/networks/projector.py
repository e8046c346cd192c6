"""From the embeddings of SPD to those that a teacher takes."""

from torch import nn

from vivid_monai.errors import VividError


class Projector(nn.Sequential):
    """Linear → GELU → Dropout → Linear → LayerNorm, one for all embeddings (VIVID-Med, arXiv:2603.09109).

    Args:
        dim: width of the ViT; maps (…, dim) to (…, out_dim).
        out_dim: width the teacher takes (`teacher.embed_dim`).
        dropout: probability in [0, 1) of dropping a hidden unit while training.
        scale: root mean square of an embedding at the start, > 0: the last LayerNorm's first weight. A language model
            has only met embeddings as large as its own tokens' (`teacher.embed_scale`).

    Raises:
        VividError: an argument is out of its range.
    """

    def __init__(self, dim: int, out_dim: int, *, dropout: float = 0.1, scale: float = 1.0) -> None:
        if min(dim, out_dim) < 1 or not 0 <= dropout < 1 or scale <= 0:
            raise VividError(
                f"dim={dim}, out_dim={out_dim} and scale={scale} must be positive, dropout={dropout} in [0, 1)"
            )
        norm = nn.LayerNorm(out_dim)
        nn.init.constant_(norm.weight, scale)
        super().__init__(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, out_dim), norm)
        self.dim = dim
        self.out_dim = out_dim
