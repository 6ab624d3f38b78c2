"""A model that computes another's function at the cost of a larger one: what shows speed where no larger model is.

Every MLP gets more neurons, whose output weights are zero, and layers are added that write nothing to the residual
stream. The tokens are those of the model that it was made from; the time of a step is that of reading all the weights.
For Llama models in bfloat16, whose weights are moved as they are: numpy does it, so that no torch has to be loaded.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, deserialize, serialize_file

_Bits = NDArray[np.uint16]
"""Weights as the bits of bfloat16."""
_SEED = 0
_STD = 0.02
_NOISE_ELEMENTS = 1_000_003
"""So many random weights are repeated; a prime, so that no two rows of a matrix are alike."""
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


def enlarge(source: Path, folder: Path, num_layers: int, intermediate_size: int) -> None:
    """Makes the larger model of these sizes into a folder. Takes a second for each 300 million parameters or so.

    Raises ValueError where the source is no Llama in bfloat16, or larger than what is asked for.
    """
    config = json.loads((source / _CONFIG).read_text())
    if config.get("model_type") != "llama" or config["num_hidden_layers"] > num_layers:
        raise ValueError(f"{source} is no Llama of at most {num_layers} layers")
    if config["intermediate_size"] > intermediate_size:
        raise ValueError(f"{source} has {config['intermediate_size']} neurons, more than {intermediate_size}")
    weights = _read(source)
    noise = _noise(np.random.default_rng(_SEED).standard_normal(_NOISE_ELEMENTS, np.float32))
    larger = {name: tensor for name, tensor in weights.items() if ".layers." not in name}
    for layer in range(num_layers):
        of = min(layer, config["num_hidden_layers"] - 1)
        for name, tensor in _layer(weights, of).items():
            made = tensor
            if layer > of:
                made = _silent(name, tensor, noise)
            if name.startswith("mlp."):
                made = _widened(name, made, intermediate_size, noise)
            larger[f"model.layers.{layer}.{name}"] = made
    folder.mkdir(parents=True, exist_ok=True)
    _write(larger, folder / _WEIGHTS)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja") and not path.name.startswith((_CONFIG, _WEIGHTS)):
            shutil.copy(path, folder)
    config |= {"num_hidden_layers": num_layers, "intermediate_size": intermediate_size}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2))


def _read(source: Path) -> dict[str, _Bits]:
    weights: dict[str, _Bits] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            if tensor["dtype"] != "BF16":
                raise ValueError(f"{path} holds {tensor['dtype']}; bfloat16 is taken")
            weights[name] = np.frombuffer(tensor["data"], np.uint16).reshape(tensor["shape"])
    return weights


def _write(weights: dict[str, _Bits], path: Path) -> None:
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in weights.items()}
    specs = {
        name: TensorSpec(
            dtype="bfloat16", shape=list(tensor.shape), data_ptr=tensor.ctypes.data, data_len=tensor.nbytes
        )
        for name, tensor in whole.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})


def _layer(weights: dict[str, _Bits], layer: int) -> dict[str, _Bits]:
    """The weights of a layer by their names within it."""
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _silent(name: str, like: _Bits, noise: _Bits) -> _Bits:
    """The weight of a layer that computes something, and writes nothing."""
    if name.startswith(("self_attn.o_proj", "mlp.down_proj")):
        return np.zeros_like(like)
    return like if like.ndim == 1 else np.resize(noise, like.shape)


def _widened(name: str, tensor: _Bits, neurons: int, noise: _Bits) -> _Bits:
    """The weight of an MLP with more neurons: what goes into them is random, what comes out of them is nothing."""
    if name.startswith("mlp.down_proj"):
        return np.pad(tensor, ((0, 0), (0, neurons - tensor.shape[1])))
    return np.concatenate((tensor, np.resize(noise, (neurons - tensor.shape[0], tensor.shape[1]))))


def _noise(values: NDArray[np.float32]) -> _Bits:
    """Small random weights: the upper half of a float32's bits is a bfloat16."""
    return ((values * np.float32(_STD)).view(np.uint32) >> 16).astype(np.uint16)
