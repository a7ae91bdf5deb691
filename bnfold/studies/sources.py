"""The publications whose claims are held against measurements."""

from __future__ import annotations

from bnfold.studies.result import Source

IOFFE_SZEGEDY = Source(
    "Ioffe and Szegedy 2015",
    "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    "https://arxiv.org/abs/1502.03167",
)
BJORCK = Source("Bjorck et al. 2018", "Understanding Batch Normalization", "https://arxiv.org/abs/1806.02375")
SANTURKAR = Source(
    "Santurkar et al. 2018", "How Does Batch Normalization Help Optimization?", "https://arxiv.org/abs/1805.11604"
)
YANG = Source("Yang et al. 2019", "A Mean Field Theory of Batch Normalization", "https://arxiv.org/abs/1902.08129")
DE_SMITH = Source(
    "De and Smith 2020",
    "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
    "https://arxiv.org/abs/2002.10444",
)
LUO = Source(
    "Luo et al. 2019", "Towards Understanding Regularization in Batch Normalization", "https://arxiv.org/abs/1809.00846"
)
VAN_LAARHOVEN = Source(
    "van Laarhoven 2017", "L2 Regularization versus Batch and Weight Normalization", "https://arxiv.org/abs/1706.05350"
)
WU_JOHNSON = Source("Wu and Johnson 2021", 'Rethinking "Batch" in BatchNorm', "https://arxiv.org/abs/2105.07576")
