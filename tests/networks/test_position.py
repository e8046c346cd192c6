"""Position embeddings on other grids."""

import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks.weights import resize_position_embeddings, square_grid


def test_the_same_grid_gives_the_same_tensor() -> None:
    embeddings = torch.randn(1, 12, 5)
    assert resize_position_embeddings(embeddings, source=(3, 4), target=(3, 4)) is embeddings


@pytest.mark.parametrize("target", [(24, 24), (7, 7), (20, 9)])
def test_a_plane_that_is_linear_in_rows_and_columns_stays_so(target: tuple[int, int]) -> None:
    """Half-pixel bicubic interpolation reproduces linear functions away from the border."""

    def plane(rows: int, columns: int) -> torch.Tensor:
        y = (torch.arange(rows) + 0.5) / rows
        x = (torch.arange(columns) + 0.5) / columns
        return torch.stack([y[:, None] + 0 * x, 0 * y[:, None] + x, 2 * y[:, None] - x], dim=-1)

    resized = resize_position_embeddings(plane(14, 14).reshape(1, -1, 3), source=(14, 14), target=target)
    inside = (slice(target[0] // 3, -(target[0] // 3)), slice(target[1] // 3, -(target[1] // 3)))
    torch.testing.assert_close(resized.reshape(*target, 3)[inside], plane(*target)[inside], atol=2e-3, rtol=0)


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(VividError, match="grid of 3 x 3"):
        resize_position_embeddings(torch.zeros(1, 10, 4), source=(3, 3), target=(2, 2))
    assert square_grid(196) == (14, 14)
    with pytest.raises(VividError, match="15 position embeddings"):
        square_grid(15)
