"""Networks of other libraries as backbones: built from a few words, without the library's files or a connection."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_module_registration_hook

from vivid_monai.errors import VividError, cut, first_line
from vivid_monai.networks.classifier import BACKBONES

OUTPUTS = ("tokens", "pooled")
MOST_MODULES, LARGEST, LARGEST_SIDE = 10_000, 2**16, 4096
"""What a network is made of, the largest number in its settings, pixels of a side: more is no network but a trap."""

TRANSFORMERS_TOKENS = {
    **dict.fromkeys(("ijepa", "siglip_vision_model"), 0),
    **dict.fromkeys(("beit", "clip_vision_model", "data2vec-vision", "vit", "vit_mae", "vit_msn"), 1),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit"), 1),
    "deit": 2,
}
"""Model types whose last hidden state is tokens, and how many stand before the patches': 0, or CLS and whatever follows
it. Register tokens (config.num_register_tokens) come on top."""
TRANSFORMERS_MAPS = {"convnext": "layernorm", "convnextv2": "layernorm", "regnet": "", "resnet": ""}
"""Model types whose last hidden state is a map, and the LayerNorm of its average, if any."""
TRANSFORMERS_SAY_NOTHING = {
    *("architectures", "dtype", "id2label", "label2id", "problem_type", "torch_dtype", "transformers_version")
}
"""Keys of a configuration that change no feature."""


class Built(NamedTuple):
    """A network of a library, without its classifier, and how it is read.

    Attributes:
        network: the library's own module.
        name: of the architecture.
        prefix: tokens before those of the grid.
        tokens: (network, images) → tokens (B, T, D), or a map (B, D, H, W); None where it has neither.
        pooled: (network, images) → the network's own pooled output (B, D).
        norm: path of the LayerNorm that the library puts behind the average of the map; empty: there is none.
    """

    network: Any
    name: str
    prefix: int
    tokens: Callable[[Any, Tensor], Tensor] | None
    pooled: Callable[[Any, Tensor], Tensor]
    norm: str = ""


class LibraryBackbone(nn.Module):
    """A network of transformers, timm, open_clip, TorchXRayVision or MONAI that returns tokens.

    Tokens of a transformer are those after its last LayerNorm. Those of a network of convolutions are the cells of its
    last map, and their mean is its own pooled output where that is an average (ResNet, DenseNet) or the LayerNorm of
    one (ConvNeXt). The weights are drawn anew, as the library draws them; `network` holds them.

    No code but the library's own is run, and no file or connection is opened: `model` may come from anyone's file.
    Attributes: see `vivid_monai.networks.classifier.BACKBONES`.

    Args:
        library: "transformers", "timm", "open_clip", "torchxrayvision" or "monai".
        model: what builds the architecture in that library, JSON: the configuration of a vision model, `model_type` in
            it (transformers); `architecture` and further arguments of its class (timm); `embed_dim`, `vision_cfg` and
            `quick_gelu` (open_clip); `architecture`, "densenet121" or "resnet50" (torchxrayvision), such as
            "densenet121" or "resnet18", with `in_channels` and, of a ResNet, `bias_downsample` (monai).
        image_shape: (C, H, W) of an image, square.
        output: "tokens"; or "pooled" for the network's own pooled output as the one token of a grid of one cell, such
            as SigLIP's attention pooling or CLIP's embedding in the space shared with text.

    Raises:
        VividError: another library, or one that is not installed; a model that it does not know or that a file should
            not ask for; images that the network does not take; tokens that it does not have.
    """

    keeps_more_than_its_state = True  # tables that the libraries work out when they build, and keep out of files

    def __init__(
        self,
        *,
        library: str,
        model: Mapping[str, Any],
        image_shape: Sequence[int],
        output: str = "tokens",
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise VividError(f"output={output!r} must be tokens or pooled")
        square = len(image_shape) == 3 and image_shape[1] == image_shape[2]
        if not square or not all(isinstance(one, int) and 0 < one <= LARGEST_SIDE for one in image_shape):
            raise VividError(f"image_shape={image_shape} must be channels and two equal sides up to {LARGEST_SIDE}")
        built, model = _build(library, model, output)
        self.library, self.output, self.image_shape = library, output, tuple(image_shape)
        self.config = {"library": library, "model": model, "image_shape": list(image_shape), "output": output}
        self.network, self.architecture, self.prefix, self._read_tokens, self._read_pooled, self._norm = built
        if output == "pooled":
            self.prefix = 0
        elif self._read_tokens is None:
            raise VividError(f"{self.architecture} gives no tokens, but a pooled output: output='pooled'")
        self.embed_dim, self.grid = 0, (0, 0)
        self.train()
        if not any(parameter.is_meta for parameter in self.parameters()):
            self._measure()

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, prefix + cells, D) of images, whatever :attr:`output` is."""
        if self._read_tokens is None:
            raise VividError(f"{self.architecture} gives no tokens")
        tokens = self._read_tokens(self.network, images)
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return _normed(tokens, self.network.get_submodule(self._norm)) if self._norm else tokens

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of a batch of images.

        Args:
            x: (B, C, H, W) float, normalised as the weights' preprocessing says.

        Returns:
            (B, prefix + prod(grid), D), the last axis running fastest.

        Raises:
            VividError: the images are not of the size the network was built for.
        """
        if not torch.jit.is_tracing() and tuple(x.shape[1:]) != self.image_shape:
            raise VividError(
                f"a batch of shape {list(x.shape)} does not fit a network built for images {self.image_shape}"
            )
        return self.tokens(x) if self.output == "tokens" else self._read_pooled(self.network, x).unsqueeze(1)

    def _measure(self) -> None:
        """Width and grid, of what the network makes of an image."""
        self.eval()
        try:
            with torch.no_grad():
                _, count, self.embed_dim = self(torch.zeros(1, *self.image_shape)).shape
        except Exception as error:  # the networks of the libraries raise whatever they like on a size they lack
            shape = " x ".join(map(str, self.image_shape))
            raise VividError(
                f"the network ({self.architecture}) does not take the images that its preprocessing makes, {shape}: "
                f"{first_line(error)}"
            ) from error
        side = isqrt(count - self.prefix)
        if side * side != count - self.prefix:
            raise VividError(f"{self.architecture} gives {count} tokens, {self.prefix} before a grid that is no square")
        self.grid = (side, side)
        self.train()


BACKBONES["library"] = LibraryBackbone  # not said there, as that file goes into bundles of networks that need none


def offers(library: str, model: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a network has a CLS token, and whether it has tokens at all. No memory is taken.

    Raises:
        VividError: as `LibraryBackbone`.
    """
    with torch.device("meta"):
        built, _ = _build(library, model, "pooled")
    return built.prefix > 0, built.tokens is not None


def _build(library: str, model: Mapping[str, Any], output: str) -> tuple[Built, dict[str, Any]]:
    """A network, and its model as it is in a file."""
    if library not in BUILDERS:
        raise VividError(f"library={library!r} must be one of {', '.join(BUILDERS)}")
    said = json.loads(json.dumps(dict(model)))  # tuples become lists
    _check("model", said)
    try:
        with _bounded():
            return BUILDERS[library](said, output), said
    except VividError:
        raise
    except Exception as error:  # the libraries raise their own kinds on what they do not know
        raise VividError(f"{library} cannot build this model: {cut(repr(error), 120)}") from error


def _check(key: str, value: Any) -> None:
    """Refuse what no network is described by, and what would be evaluated in a config of MONAI."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name.startswith("_"):
                raise VividError(f"{key}: {cut(repr(name), 60)} is no setting of a network")
            _check(name, one)
    elif isinstance(value, list):
        for one in value:
            _check(key, one)
    elif (isinstance(value, str) and value[:1] in "$@%" and value) or (isinstance(value, int) and abs(value) > LARGEST):
        raise VividError(f"{cut(key, 60)}={cut(repr(value), 60)} is no setting of a network")


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop the building of a network that has no end: settings may come from anyone's file."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise VividError(f"its settings ask for more than {MOST_MODULES} layers")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _normed(cells: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Cells (B, T, D) whose mean is the LayerNorm of their mean: each on the scale of the average."""
    centred = cells - cells.mean(dim=2, keepdim=True)
    scale = (centred.mean(dim=1, keepdim=True).square().mean(dim=2, keepdim=True) + norm.eps).rsqrt()
    return centred * scale * norm.weight + norm.bias


def drop_pooler(model: Any) -> None:
    """Take away the part behind the tokens of a model of transformers: where it is not used, files often lack it."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    tower = _tower(model)
    if getattr(tower, "use_head", False):
        tower.use_head = False
        del tower.head


def _tower(model: Any) -> Any:
    """Where CLIP and SigLIP keep their layers: earlier versions of transformers wrap them once more."""
    return getattr(model, "vision_model", model)


def _transformers(model: dict[str, Any], output: str) -> Built:
    from transformers import AutoConfig, AutoModel

    for key in model:  # networks in networks, and attention or weights that would be fetched, with code of their own
        if any(word in key for word in ("auto_map", "backbone", "implementation", "kernel", "quantization")):
            raise VividError(f"model: {cut(key, 60)} is not taken from a file")
    kind = model.get("model_type")
    if not isinstance(kind, str) or kind.startswith("timm"):
        raise VividError(f"model_type={cut(repr(kind), 60)} is no vision model of transformers; timm has its own")
    network = AutoModel.from_config(AutoConfig.for_model(**model), dtype=torch.float32, trust_remote_code=False)
    if network.main_input_name != "pixel_values":
        raise VividError(f"a {kind} model takes no images")
    prefix, known = TRANSFORMERS_TOKENS.get(kind, 0), kind in TRANSFORMERS_TOKENS or kind in TRANSFORMERS_MAPS
    if prefix:
        prefix += getattr(network.config, "num_register_tokens", None) or 0
    if output == "tokens" and kind in TRANSFORMERS_TOKENS:
        drop_pooler(network)
    tokens, norm = _hidden if known else None, TRANSFORMERS_MAPS.get(kind, "")
    return Built(network, type(network).__name__, prefix, tokens, _pooler_output, norm)


def _run(network: Any, images: Tensor) -> Any:
    more = {}
    if network.config.model_type == "vit_mae":  # with nothing masked, the noise is the order of the patches
        order = torch.arange(network.embeddings.patch_embeddings.num_patches, device=images.device)
        more["noise"] = order.expand(len(images), -1).float()
    return network(pixel_values=images, **more)


def _hidden(network: Any, images: Tensor) -> Tensor:
    tokens = _run(network, images).last_hidden_state
    if network.config.model_type == "clip_vision_model":  # applied there to the CLS token alone
        tokens = _tower(network).post_layernorm(tokens)
    return tokens


def _pooler_output(network: Any, images: Tensor) -> Tensor:
    pooled = getattr(_run(network, images), "pooler_output", None)
    if pooled is None:
        raise VividError("it gives no pooled output, and where its tokens stand is not known")
    return pooled.flatten(1)


def _timm(model: dict[str, Any], output: str) -> Built:
    timm, arguments = import_library("timm", "timm"), dict(model)
    name = arguments.pop("architecture", None)
    if not isinstance(name, str) or not timm.is_model(name):
        raise VividError(f"architecture={cut(repr(name), 60)} is none of timm {timm.__version__}")
    for key in arguments:
        if key.startswith("pretrained") or key in ("checkpoint_path", "features_only", "device", "dtype"):
            raise VividError(f"model: {key} is not taken from a file")
    network = timm.create_model(name, pretrained=False, **arguments)
    network.reset_classifier(0)
    norm = "head.norm" if isinstance(getattr(getattr(network, "head", None), "norm", None), nn.LayerNorm) else ""
    return Built(network, name, _timm_prefix(network), _timm_tokens, _itself, norm)


def _timm_prefix(network: Any) -> int:
    return getattr(network, "num_prefix_tokens", 1) if _has_cls(network) else 0


def _has_cls(network: Any) -> bool:
    return getattr(network, "cls_token", None) is not None


def _timm_tokens(network: Any, images: Tensor) -> Tensor:
    tokens = network.forward_features(images)
    if tokens.ndim == 4:
        return tokens.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else tokens
    # What stands before a grid begins with CLS; registers without one are left out.
    return tokens if _has_cls(network) else tokens[:, getattr(network, "num_prefix_tokens", 0) :]


def _itself(network: Any, images: Tensor) -> Tensor:
    return network(images)


def _open_clip(model: dict[str, Any], output: str) -> Built:
    open_clip, vision = import_library("open_clip", "open_clip_torch"), dict(model["vision_cfg"])
    name = vision.get("timm_model_name")
    if name and not import_library("timm", "timm").is_model(name):
        raise VividError(f"timm_model_name={cut(repr(name), 60)} is none of timm's")
    vision["timm_model_pretrained"] = False
    quick = model.get("quick_gelu", False)
    network = open_clip.model._build_vision_tower(model["embed_dim"], vision, quick_gelu=quick)
    called = f"{name or type(network).__name__} (open_clip)"
    if name:
        return Built(network, called, _timm_prefix(network.trunk), _trunk_tokens, _itself)
    known = hasattr(network, "class_embedding") and getattr(network, "attn_pool", None) is None
    return Built(network, called, int(known), _clip_tokens if known else None, _itself)


def _trunk_tokens(network: Any, images: Tensor) -> Tensor:
    return _timm_tokens(network.trunk, images)


def _clip_tokens(network: Any, images: Tensor) -> Tensor:
    output = network.forward_intermediates(
        images, indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
    )
    return torch.cat((output["image_intermediates_prefix"][0], output["image_intermediates"][0]), dim=1)


def _torchxrayvision(model: dict[str, Any], output: str) -> Built:
    name = model.get("architecture")
    if name == "densenet121":
        network = import_library("torchxrayvision", "torchxrayvision").models.DenseNet()
        network.classifier = nn.Identity()
        return Built(network, name, 0, _densenet_map, _features2)
    if name == "resnet50":
        network = import_library("torchvision", "torchvision").models.resnet50()
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        network.fc = nn.Identity()
        return Built(network, name, 0, _resnet_map, _itself)
    raise VividError(f"architecture={cut(repr(name), 60)} must be densenet121 or resnet50")


def _features2(network: Any, images: Tensor) -> Tensor:
    return network.features2(images)


def _densenet_map(network: Any, images: Tensor) -> Tensor:
    return F.relu(network.features(images))


def _resnet_map(network: Any, images: Tensor) -> Tensor:
    act = network.relu if hasattr(network, "relu") else network.act  # torchvision's name and MONAI's
    maps = network.maxpool(act(network.bn1(network.conv1(images))))
    return network.layer4(network.layer3(network.layer2(network.layer1(maps))))


MONAI_NETWORKS = (
    *(f"densenet{depth}" for depth in (121, 169, 201, 264)),
    *(f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)),
)


def _monai(model: dict[str, Any], output: str) -> Built:
    from monai.networks import nets

    name, channels = model.get("architecture"), model.get("in_channels", 1)
    if name not in MONAI_NETWORKS:
        raise VividError(f"architecture={cut(repr(name), 60)} must be one of {', '.join(MONAI_NETWORKS)}")
    if name.startswith("densenet"):
        network = getattr(nets, name)(spatial_dims=2, in_channels=channels, out_channels=1)
        network.class_layers.out = nn.Identity()
        return Built(network, name, 0, _densenet_map, _itself)
    bias = model.get("bias_downsample", True)
    shape = {"spatial_dims": 2, "n_input_channels": channels}
    network = getattr(nets, name)(**shape, feed_forward=False, bias_downsample=bias)
    return Built(network, name, 0, _resnet_map, _itself)


PACKAGES = {
    "transformers": ("transformers",),
    "timm": ("timm",),
    "open_clip": ("open-clip-torch", "timm"),
    "torchxrayvision": ("torchxrayvision", "torchvision"),
    "monai": (),
}
"""What pip installs for the networks of a library, beside what this package needs."""
BUILDERS: dict[str, Callable[[dict[str, Any], str], Built]] = {
    "transformers": _transformers,
    "timm": _timm,
    "open_clip": _open_clip,
    "torchxrayvision": _torchxrayvision,
    "monai": _monai,
}


def import_library(name: str, package: str) -> ModuleType:
    """An optional library; a VividError where it is not installed, or cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise VividError(f"{name} lacks the package {error.name}: pip install {error.name}") from error
        raise VividError(f"{name} is not installed: pip install {package}") from error
    except Exception as error:  # a build of torchvision that does not fit PyTorch's raises RuntimeError
        raise VividError(f"{name} cannot be imported: {first_line(error)}; mend it: pip install {package}") from error
