"""Models as pure functions: reference networks, adapters, and the layers they are made of."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.data.population.counting import counted, with_counts
    from fedjax_lite.models.adversarial import Adversarial, adversarial
    from fedjax_lite.models.augment import augmented, random_images
    from fedjax_lite.models.batch_norm import (
        batch_norm,
        batch_norm_mask,
        init_batch_norm,
        record_statistics,
        statistics_mask,
        with_averaged_statistics,
        with_statistics,
    )
    from fedjax_lite.models.bottleneck import bottleneck, init_bottleneck
    from fedjax_lite.models.cnn import cnn
    from fedjax_lite.models.conv import conv, conv_general_dilated
    from fedjax_lite.models.conv_nets import cifar_cnn24, conv_net, lenet, mcmahan_cnn, pfl_cnn
    from fedjax_lite.models.dense_nets import linear, mlp
    from fedjax_lite.models.flax_adapters import from_linen, from_nnx
    from fedjax_lite.models.functions import from_functions
    from fedjax_lite.models.gan import Gan, dcgan, mlp_gan
    from fedjax_lite.models.gated import gated_experts
    from fedjax_lite.models.lora import (
        Adapted,
        LowRank,
        dense_kernels,
        lora,
        merged,
        stacked_adapters,
        unmerged,
    )
    from fedjax_lite.models.losses import (
        accuracy,
        check_per_example,
        cross_entropy,
        focal_loss,
        sigmoid_focal_loss,
    )
    from fedjax_lite.models.model import Model
    from fedjax_lite.models.pooling import avg_pool, max_pool
    from fedjax_lite.models.precision import with_precision
    from fedjax_lite.models.recurrent import char_lstm
    from fedjax_lite.models.reversal import gradient_reversal, ramped_strength
    from fedjax_lite.models.transformer import char_transformer
    from fedjax_lite.models.weighted import WeightedModels, weighted_models

__all__ = [
    "Adapted",
    "Adversarial",
    "Gan",
    "LowRank",
    "Model",
    "WeightedModels",
    "accuracy",
    "adversarial",
    "augmented",
    "avg_pool",
    "batch_norm",
    "batch_norm_mask",
    "bottleneck",
    "char_lstm",
    "char_transformer",
    "check_per_example",
    "cifar_cnn24",
    "cnn",
    "conv",
    "conv_general_dilated",
    "conv_net",
    "counted",
    "cross_entropy",
    "dcgan",
    "dense_kernels",
    "focal_loss",
    "from_functions",
    "from_linen",
    "from_nnx",
    "gated_experts",
    "gradient_reversal",
    "init_batch_norm",
    "init_bottleneck",
    "lenet",
    "linear",
    "lora",
    "max_pool",
    "mcmahan_cnn",
    "merged",
    "mlp",
    "mlp_gan",
    "pfl_cnn",
    "ramped_strength",
    "random_images",
    "record_statistics",
    "sigmoid_focal_loss",
    "stacked_adapters",
    "statistics_mask",
    "unmerged",
    "weighted_models",
    "with_averaged_statistics",
    "with_counts",
    "with_precision",
    "with_statistics",
]

load_when_asked(__name__)
