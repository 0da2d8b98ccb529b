"""A small convolutional network, with which studies of many runs take hours on a CPU, not days."""

from torch import nn


def make_network(num_classes: int, image_size: int) -> nn.Sequential:  # noqa: ARG001
    """Return a network of four convolutions with stride 2 and batch norm (242,000 parameters).

    Args:
        num_classes: the number of outputs.
        image_size: any number of pixels; not used.
    """
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in ((3, 32), (32, 64), (64, 128), (128, 128)):
        convolution = nn.Conv2d(num_inputs, num_outputs, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(num_outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)
    )
