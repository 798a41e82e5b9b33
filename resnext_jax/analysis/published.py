"""Published parameters, multiply-adds and activations of the zoo's networks, with exactly the published digits.

Digits are cut as often as they are rounded: 25,557,032 is 25.5 M in the paper.
"""

import dataclasses
import re

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of one network from one source; "" where it has none. Activations are the outputs of convolutions."""

    source: str
    params: str
    multiply_adds: str = ""
    activations: str = ""


PAPER, TORCHVISION, TIMM, PYCLS = "paper", "torchvision", "timm", "pycls"
RESNET, WRN, DENSENET = "He et al. 2015", "Zagoruyko 2016", "Huang et al. 2016"
IMGCLSMOB = "imgclsmob"  # counts all additions too

PUBLISHED: dict[str, tuple[Figures, ...]] = {
    "resnet18": (Figures(TORCHVISION, "11,689,512", "1.814 G"),),
    "resnet34": (Figures(TORCHVISION, "21,797,672", "3.664 G"),),
    "resnet50": (
        Figures(PAPER, "25.5 M", "4.1 G"),
        Figures(TORCHVISION, "25,557,032", "4.089 G"),
        Figures(PYCLS, "22.6 M", "4.1 G", "11.1 M"),  # 22.6 must be a slip
    ),
    "resnet101": (Figures(TORCHVISION, "44,549,160", "7.801 G"), Figures(PYCLS, "44.6 M", "7.8 G", "16.2 M")),
    "resnet152": (Figures(TORCHVISION, "60,192,808", "11.514 G"), Figures(PYCLS, "60.2 M", "11.5 G", "22.6 M")),
    "preresnet18": (Figures(TIMM, "11,687,720"),),
    "preresnet34": (Figures(TIMM, "21,795,880"),),
    "preresnet50": (Figures(TIMM, "25,549,352"),),
    "preresnet101": (Figures(TIMM, "44,541,480"),),
    "preresnet152": (Figures(TIMM, "60,185,128"),),
    "plain34": (Figures(RESNET, "", "3.6 G"),),
    "resnext50_32x4d": (
        Figures(PAPER, "25.0 M", "4.2 G"),
        Figures(TORCHVISION, "25,028,904", "4.230 G"),
        Figures(PYCLS, "25.0 M", "4.2 G", "14.4 M"),
    ),
    "resnext101_32x4d": (Figures(TIMM, "44,177,704"), Figures(PYCLS, "44.2 M", "8.0 G", "21.2 M")),
    "resnext101_64x4d": (Figures(TORCHVISION, "83,455,272", "15.460 G"),),
    "resnext101_32x8d": (Figures(TORCHVISION, "88,791,336", "16.414 G"),),
    "resnext101_32x16d": (Figures(TIMM, "194,026,792"),),
    "resnext101_32x32d": (Figures(TIMM, "468,530,472"),),
    "resnext152_32x4d": (Figures(PYCLS, "60.0 M", "11.7 G", "29.7 M"),),
    "wide_resnet50_2": (Figures(TORCHVISION, "68,883,240", "11.398 G"),),
    "wide_resnet101_2": (Figures(TORCHVISION, "126,886,696", "22.753 G"),),
    "vgg11": (Figures(TORCHVISION, "132,863,336", "7.609 G"),),
    "vgg13": (Figures(TORCHVISION, "133,047,848", "11.308 G"),),
    "vgg16": (Figures(TORCHVISION, "138,357,544", "15.470 G"),),
    "vgg19": (Figures(TORCHVISION, "143,667,240", "19.632 G"),),
    "vgg11_bn": (Figures(TORCHVISION, "132,868,840", "7.609 G"),),
    "vgg13_bn": (Figures(TORCHVISION, "133,053,736", "11.308 G"),),
    "vgg16_bn": (Figures(TORCHVISION, "138,365,992", "15.470 G"),),
    "vgg19_bn": (Figures(TORCHVISION, "143,678,248", "19.632 G"),),
    "densenet121": (Figures(TORCHVISION, "7,978,856", "2.834 G"),),
    "densenet161": (Figures(TORCHVISION, "28,681,000", "7.728 G"),),
    "densenet169": (Figures(TORCHVISION, "14,149,480", "3.360 G"),),
    "densenet201": (Figures(TORCHVISION, "20,013,928", "4.291 G"),),
    "resnext29_8x64d": (Figures(PAPER, "34.4 M"),),
    "resnext29_16x64d": (Figures(PAPER, "68.1 M"), Figures(IMGCLSMOB, "68,155,210")),
    "wrn28_10": (Figures(PAPER, "36.5 M"), Figures(IMGCLSMOB, "36,479,194")),
    "wrn40_8": (Figures(WRN, "35.7 M"), Figures(IMGCLSMOB, "35,748,314")),
    "wrn16_8": (Figures(WRN, "11.0 M"),),
    "densenet_bc100_12": (Figures(DENSENET, "0.8 M"), Figures(IMGCLSMOB, "769,162")),
}


def agrees(count: int, published: str) -> bool:
    """Return whether a count is the published one: cut or rounded, or equal where all digits are published.

    Example:
      >>> agrees(25_557_032, "25.5 M"), agrees(25_557_032, "25.6 M"), agrees(25_557_032, "25.7 M")
      (True, True, False)
    """
    digits, unit = re.fullmatch(r"([\d,.]+) ?(\w?)", published).groups()  # pyright: ignore
    decimals = len(digits.partition(".")[2])
    last_digit = UNITS[unit] / 10**decimals if unit else 1
    return abs(count - float(digits.replace(",", "")) * UNITS[unit]) < last_digit
