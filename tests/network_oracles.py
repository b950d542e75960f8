"""Small networks in plain NumPy, layer by layer, from the variables of the Flax ones.

Nothing here imports the library (or JAX); see `tests/oracles.py`.
"""

import numpy as np


class Layers:
    """What the layers compute, in float64, by the paths of their variables."""

    def __init__(self, variables):
        self.params = _by_path(variables["params"])
        self.stats = _by_path(variables["batch_stats"])

    def conv(self, path, x, strides=1):
        kernel = self.params[f"{path}/kernel"]
        size, pad = kernel.shape[0], kernel.shape[0] // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        rows = range(0, x.shape[1] - size + 1, strides)
        columns = range(0, x.shape[2] - size + 1, strides)
        is_depthwise = "depthwise" in path
        rule = "bijc,ijoc->bc" if is_depthwise else "bijc,ijco->bo"
        return np.stack(
            [
                np.stack(
                    [
                        np.einsum(rule, x[:, i : i + size, j : j + size], kernel)
                        for j in columns
                    ],
                    axis=1,
                )
                for i in rows
            ],
            axis=1,
        )

    def norm(self, path, x):
        scale, bias = (self.params[f"{path}/{name}"] for name in ("scale", "bias"))
        mean, var = (self.stats[f"{path}/{name}"] for name in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def layer(self, path, x, strides=1):
        x = self.conv(f"{path}/conv", x, strides)
        return np.maximum(self.norm(f"{path}/norm", x), 0)

    def pool(self, x, size, pad):
        """Max pool with stride 2."""
        pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        x = np.pad(x, pads, constant_values=-np.inf)
        side = (x.shape[1] - size) // 2 + 1
        y = np.empty((x.shape[0], side, side, x.shape[3]))
        for i, j in np.ndindex(side, side):
            y[:, i, j] = x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size].max((1, 2))
        return y

    def block(self, path, x, strides, strided, convs):
        """A residual block of `convs` convolutions; the `strided`-th has the stride."""
        y = x
        for i in range(1, convs + 1):
            y = self.conv(f"{path}/conv_{i}", y, strides if i == strided else 1)
            y = self.norm(f"{path}/norm_{i}", y)
            y = np.maximum(y, 0) if i < convs else y
        if f"{path}/shortcut_conv/kernel" in self.params:
            x = self.conv(f"{path}/shortcut_conv", x, strides)
            x = self.norm(f"{path}/shortcut_norm", x)
        return np.maximum(x + y, 0)

    def classify(self, x):
        weights = self.params["classifier/kernel"]
        return x.mean((1, 2)) @ weights + self.params["classifier/bias"]


def _by_path(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: np.asarray(tree, np.float64)}
    found = {}
    for name, branch in tree.items():
        found |= _by_path(branch, f"{prefix}{name}/")
    return found


def resnet_forward(net, x):
    x = net.layer("stem", x)
    x = net.block("stage_1/block_1", x, 1, 1, 2)
    return net.classify(net.block("stage_2/block_1", x, 2, 1, 2))


def basic_forward(net, x):
    x = net.pool(net.layer("stem", x, 2), size=3, pad=1)
    x = net.block("stage_1/block_1", x, 1, 1, 2)
    return net.classify(net.block("stage_2/block_1", x, 2, 1, 2))


def bottleneck_forward(net, x):
    x = net.pool(net.layer("stem", x, 2), size=3, pad=1)
    x = net.block("stage_1/bottleneck_1", x, 1, 2, 3)
    return net.classify(net.block("stage_2/bottleneck_1", x, 2, 2, 3))


def vgg_forward(net, x):
    x = net.pool(net.layer("stage_1/layer_1", x), size=2, pad=0)
    return net.classify(net.layer("stage_2/layer_2", net.layer("stage_2/layer_1", x)))


def mobilenet_forward(net, x):
    x = net.layer("layer_1", x, 2)
    for path, strides in (("separable_1", 1), ("separable_2", 2)):
        for kind, step in (("depthwise", strides), ("pointwise", 1)):
            x = net.conv(f"{path}/{kind}_conv", x, step)
            x = np.maximum(net.norm(f"{path}/{kind}_norm", x), 0)
    return net.classify(x)


FORWARD = {
    "resnet": resnet_forward,
    "basic": basic_forward,
    "bottleneck": bottleneck_forward,
    "vgg": vgg_forward,
    "mobilenet": mobilenet_forward,
}
